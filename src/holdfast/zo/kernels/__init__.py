"""One fused pass over a tensor: generate noise, scale, add, round into the target dtype; no temporaries.

`add_noise` has the contract of `holdfast.zo.noise.add_noise`, the reference in torch, and its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.zo import noise


def add_noise(
    values: Tensor, out: Tensor | None, coefficients: Sequence[float], queries: Sequence[int], **stream: Any
) -> None:
    """The kernel of the device: numba on a CPU, Triton on CUDA; the reference elsewhere, and for a tensor that is
    not contiguous."""
    simple = out is None or (out.is_contiguous() and out.dtype in (torch.float32, torch.bfloat16, torch.float16))
    if simple and values.device.type == "cpu":
        from holdfast.zo.kernels.cpu import add_noise as kernel
    elif simple and values.device.type == "cuda":
        from holdfast.zo.kernels.cuda import add_noise as kernel
    else:
        kernel = noise.add_noise
    kernel(values, out, coefficients, queries, **stream)
