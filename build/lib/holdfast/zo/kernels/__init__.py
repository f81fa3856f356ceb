"""One fused pass over many tensors: generate noise, scale, add, round into the target dtype; no temporaries.

`add_noise` has the contract of `holdfast.zo.noise.add_noise`, the reference in torch, and its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from holdfast.zo import noise
from holdfast.zo.noise import Stream, Target


def add_noise(targets: Sequence[Target], queries: Sequence[int], stream: Stream, *, keep: bool) -> None:
    """By the kernel of each target's device: numba on a CPU, Triton on CUDA; the reference elsewhere, and for a
    tensor that is not contiguous."""
    jobs: dict[tuple[Callable[..., None], torch.device], list[Target]] = {}
    for target in targets:
        jobs.setdefault((_kernel(target.out), target.out.device), []).append(target)
    for (kernel, _), job in jobs.items():
        kernel(job, queries, stream, keep=keep)


def _kernel(out: torch.Tensor) -> Callable[..., None]:
    if out.is_contiguous() and out.dtype in (torch.float32, torch.bfloat16, torch.float16):
        if out.device.type == "cpu":
            from holdfast.zo.kernels.cpu import add_noise

            return add_noise
        if out.device.type == "cuda":
            from holdfast.zo.kernels.cuda import add_noise

            return add_noise
    return noise.add_noise
