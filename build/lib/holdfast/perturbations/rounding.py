"""The arithmetic of quantizers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rounded(values: Tensor, bits: int, group_size: int) -> Tensor:
    """Symmetric round-to-nearest of (…, in) in groups of `group_size` inputs, dequantized to float32.

    Levels are −2^(b−1)+1 … 2^(b−1)−1 times the group's largest magnitude over 2^(b−1)−1.
    """
    groups = values.float().split(group_size, dim=-1)
    top = 2 ** (bits - 1) - 1
    scales = [g.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / top for g in groups]
    return torch.cat([(g / s).round().clamp(-top, top) * s for g, s in zip(groups, scales, strict=True)], dim=-1)


def bnb_linear(linear: nn.Linear, scheme: str) -> nn.Module:
    """The same layer in bitsandbytes' `int8`, `nf4` or `fp4`, on the same device."""
    import bitsandbytes as bnb

    bias = linear.bias is not None
    shape = linear.in_features, linear.out_features, bias  # made without values, which would be drawn for nothing
    weight = linear.weight.detach().cpu()
    if scheme == "int8":
        new = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
        new.weight = bnb.nn.Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)
    else:
        new = bnb.nn.Linear4bit(*shape, quant_type=scheme, compute_dtype=linear.weight.dtype, device="meta")
        new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type=scheme)
    if bias:
        new.bias = nn.Parameter(linear.bias.detach().cpu(), requires_grad=False)
    return new.to(linear.weight.device)
