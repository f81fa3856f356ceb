"""Gaussian noise on the matrices of the decoder layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from holdfast.perturbations.point import PERTURBATIONS, Arm, Bench, Level, Perturbation, Point


@PERTURBATIONS.register("weight_noise")
class WeightNoise(Perturbation):
    """W + level · s · z per matrix, in float32 and rounded once, by the kernels of the engine; 4 bytes a weight."""

    mode: Literal["relative", "absolute", "norm"] = Field(
        description="relative: s = rms(W); absolute: s = 1; norm: s = ‖W‖ / ‖z‖, so that every draw is as long as the "
        "matrix (llm-landscape's directions)"
    )

    level = Level("σ")
    label = "σ={level:g}"
    random = True
    keeps = "masters"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        import torch

        from holdfast.perturbations.snapshot import decoder_matrices
        from holdfast.zo.perturb import Masters

        matrices = decoder_matrices(model)
        draw = {"step": point.draw, "query": 0}
        scales = None if self.mode == "relative" else dict.fromkeys(matrices, 1.0)
        masters = Masters(matrices, seed=bench.noise_seed, noise="gaussian", scales=scales)
        try:
            if self.mode == "norm":
                masters.write(1.0, **draw)
                with torch.no_grad():
                    masters.draws.scales = {
                        name: (w.norm() / (matrices[name].float() - w).norm()).item()
                        for name, w in masters.values.items()
                    }
            masters.write(point.level, **draw)
            yield Arm(model)
        finally:
            masters.restore()
