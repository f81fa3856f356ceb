"""Gaussian noise on the weights of the decoder layers, relative to each matrix's rms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from holdfast.perturbations.snapshot import decoder_matrices, restored


@contextmanager
def weight_noise(model: Any, level: float, seed: int) -> Iterator[Any]:
    """W + level · rms(W) · z per matrix, in float32 and rounded once."""
    matrices = decoder_matrices(model)
    with restored(matrices):
        # Drawn on the CPU, so that every device meets the same noise.
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in matrices.values():
                z = torch.randn(p.shape, generator=generator).to(p.device)
                w = p.float()
                p.copy_(w + z * (level * w.square().mean().sqrt()))
        yield model
