"""Quantization of the linear layers of the decoder: bitsandbytes' kernels, and simulated round-to-nearest."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.perturbations.snapshot import decoder_matrices, restored


def rounded(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Symmetric round-to-nearest of (out, in) in groups of `group_size` inputs, dequantized.

    Levels are −2^(b−1)+1 … 2^(b−1)−1 times the group's largest magnitude over 2^(b−1)−1.
    """
    groups = weight.float().split(group_size, dim=1)
    top = 2 ** (bits - 1) - 1
    scales = [g.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / top for g in groups]
    return torch.cat([(g / s).round().clamp(-top, top) * s for g, s in zip(groups, scales, strict=True)], dim=1)


@contextmanager
def round_to_nearest(model: Any, bits: int, group_size: int) -> Iterator[Any]:
    """Weight-only quantization, simulated: the rounded weights are computed with in the model's own dtype."""
    matrices = decoder_matrices(model)
    with restored(matrices):
        with torch.no_grad():
            for p in matrices.values():
                p.copy_(rounded(p, bits, group_size))
        yield model


@contextmanager
def bitsandbytes_quantized(model: Any, mode: str) -> Iterator[Any]:
    """A copy of the model whose decoder linears are bitsandbytes' `int8` or `nf4`; the model stays untouched."""
    quantized = copy.deepcopy(model)
    for layer in quantized.model.layers:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, _bnb_linear(child, mode))
    yield quantized.to(model.device)


def _bnb_linear(linear: nn.Linear, mode: str) -> nn.Module:
    import bitsandbytes as bnb

    bias = linear.bias is not None
    weight = linear.weight.detach().cpu()
    if mode == "int8":
        new = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, bias, has_fp16_weights=False)
        new.weight = bnb.nn.Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)
    else:
        new = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias, quant_type=mode, compute_dtype=linear.weight.dtype
        )
        new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type=mode)
    if bias:
        new.bias = nn.Parameter(linear.bias.detach().cpu(), requires_grad=False)
    return new.to(linear.weight.device)
