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

    mode: Literal["relative", "absolute"] = Field(description="relative: s = rms(W); absolute: s = 1")

    level = Level("σ")
    label = "σ={level:g}"
    random = True
    keeps = "masters"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.snapshot import decoder_matrices
        from holdfast.zo.perturb import Masters

        matrices = decoder_matrices(model)
        scales = None if self.mode == "relative" else dict.fromkeys(matrices, 1.0)
        masters = Masters(matrices, seed=bench.noise_seed, noise="gaussian", scales=scales)
        try:
            masters.write(point.level, step=point.draw, query=0)
            yield Arm(model)
        finally:
            masters.restore()
