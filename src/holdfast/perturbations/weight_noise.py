"""Gaussian noise on the matrices of the decoder layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from holdfast.perturbations.point import Arm, Bench, Point
from holdfast.perturbations.snapshot import decoder_matrices
from holdfast.zo.perturb import Masters


@contextmanager
def weight_noise(model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
    """W + level · s · z per matrix, in float32 and rounded once, by the kernels of the engine; 4 bytes a weight. By
    `mode`:

    `relative`: s = rms(W). `absolute`: s = 1. `norm`: s = ‖W‖ / ‖z‖, so that every draw is as long as the matrix
    (llm-landscape's directions).
    """
    matrices = decoder_matrices(model)
    draw = {"step": point.draw, "query": 0}
    scales = None if point.options["mode"] == "relative" else dict.fromkeys(matrices, 1.0)
    masters = Masters(matrices, seed=bench.noise_seed, noise="gaussian", scales=scales)
    try:
        if point.options["mode"] == "norm":
            masters.write(1.0, **draw)
            with torch.no_grad():
                masters.scales = {
                    name: (w.norm() / (matrices[name].float() - w).norm()).item() for name, w in masters.values.items()
                }
        masters.write(point.level, **draw)
        yield Arm(model)
    finally:
        masters.restore()
