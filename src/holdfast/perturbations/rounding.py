"""The arithmetic of quantizers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def rounded(values: Tensor, bits: int, group_size: int, offset: int = 0) -> Tensor:
    """Symmetric round-to-nearest of (…, in) in groups of `group_size` inputs, dequantized to float32. With an `offset`
    the first group has so many inputs, and the others follow.

    Levels are −2^(b−1)+1 … 2^(b−1)−1 times the group's largest magnitude over 2^(b−1)−1.
    """
    width = values.shape[-1]
    size = min(group_size, width)
    before = -offset % size
    padded = pad(values.float(), (before, -(before + width) % size))
    groups = padded.unflatten(-1, (-1, size))
    top = 2 ** (bits - 1) - 1
    scales = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / top
    return ((groups / scales).round().clamp(-top, top) * scales).flatten(-2)[..., before : before + width]


def offset_of(seed: int, draw: int, group_size: int) -> int:
    """0 at draw 0; the further draws take 1 … group_size − 1 once each, in an order that the seed gives."""
    if draw == 0:
        return 0
    return sorted(range(1, group_size), key=lambda k: hashlib.sha256(f"{seed} {k}".encode()).digest())[draw - 1]


def rotated(values: Tensor, widest: int) -> Tensor:
    """(…, in) times an orthonormal matrix of equal Hadamard blocks, in float32: as wide as the largest power of two
    that divides `in` and is no more than `widest`."""
    block = math.gcd(values.shape[-1], 1 << (widest.bit_length() - 1))
    return (values.float().unflatten(-1, (-1, block)) @ _hadamard(block, values.device)).flatten(-2)


@cache
def _hadamard(width: int, device: torch.device) -> Tensor:
    """Sylvester's, which is its own inverse."""
    with torch.inference_mode(False):
        h = torch.ones(1, 1, device=device)
        while len(h) < width:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
        return h / math.sqrt(width)


def gguf_rounded(weight: Tensor, bits: int) -> Tensor:
    """(out, in) in `Q8_0`, `Q5_0` or `Q4_0`, by the number of bits, dequantized to float32 in main memory."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[f"Q{bits}_0"]
    return torch.from_numpy(dequantize(quantize(weight.detach().float().cpu().numpy(), kind), kind))


def _shifted(once: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    def rounding(weight: Tensor, shift: int) -> Tensor:
        return once(weight.roll(-shift, 1)).roll(shift, 1)

    return rounding


def _q4_0(weight: Tensor) -> Tensor:
    """The bits of `gguf_rounded` for 4 bits, which computes in numpy and would take ten times as long as a forward."""
    groups = weight.float().unflatten(1, (-1, 32))
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    levels = (groups * inverse + 8.5).trunc().clamp(0, 15) - 8
    return (levels * scale.half().float()).flatten(1)


def _nf4(weight: Tensor) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", blocksize=64))


def _w4(weight: Tensor) -> Tensor:
    from torchao.quantization import IntxUnpackedToInt8Tensor

    return IntxUnpackedToInt8Tensor.from_hp(weight, (1, 32), torch.int4).dequantize()  # type: ignore[attr-defined]


AS_SHIPPED = {"q4_0": _shifted(_q4_0), "nf4": _shifted(_nf4), "w4a8": _shifted(_w4)}
"""(matrix (out, in), shift) -> what a scheme makes of its weights, on their device, the groups begun `shift` inputs
later, around the end of a row. Inputs of layers are not rounded."""
