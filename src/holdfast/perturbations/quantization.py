"""Quantization of the decoder's linear layers: the kernels of bitsandbytes and torchao, and simulations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.perturbations.point import Arm, Bench, Point
from holdfast.perturbations.snapshot import decoder_linears, decoder_matrices, restored, shallow


def rounded(values: Tensor, bits: int, group_size: int) -> Tensor:
    """Symmetric round-to-nearest of (…, in) in groups of `group_size` inputs, dequantized to float32.

    Levels are −2^(b−1)+1 … 2^(b−1)−1 times the group's largest magnitude over 2^(b−1)−1.
    """
    groups = values.float().split(group_size, dim=-1)
    top = 2 ** (bits - 1) - 1
    scales = [g.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / top for g in groups]
    return torch.cat([(g / s).round().clamp(-top, top) * s for g, s in zip(groups, scales, strict=True)], dim=-1)


@contextmanager
def round_to_nearest(model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
    """Weights of `level` bits, simulated: the rounded weights are computed with in the model's own dtype."""
    matrices = decoder_matrices(model)
    with restored(matrices):
        with torch.no_grad():
            for p in matrices.values():
                p.copy_(rounded(p, int(point.level), point.options["group_size"]))
        yield Arm(model)


@contextmanager
def fake_quantized(model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
    """Weights of `level` bits as above, and the inputs of every linear layer rounded to `activation_bits`, with a
    scale for each token that is found as it runs; simulated."""
    bits = point.options["activation_bits"]

    def quantize(module: nn.Module, args: Any) -> Any:
        x, *rest = args
        return (rounded(x, bits, x.shape[-1]).to(x.dtype), *rest)

    with round_to_nearest(model, point, bench) as arm, ExitStack() as hooks:
        for linear in decoder_linears(model).values():
            hooks.callback(linear.register_forward_pre_hook(quantize).remove)
        yield arm


@contextmanager
def bitsandbytes(model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
    """A copy whose decoder linears are bitsandbytes' `int8`, `nf4` or `fp4` (`scheme`), each where its original is: it
    takes a byte a weight, or about half of one. All else it shares with the model."""
    quantized = shallow(model)
    for name, linear in decoder_linears(quantized).items():
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        setattr(quantized.get_submodule(parent), child, _bnb_linear(linear, point.options["scheme"]))
    yield Arm(quantized)


def _bnb_linear(linear: nn.Linear, scheme: str) -> nn.Module:
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


@contextmanager
def torchao(model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
    """A copy whose decoder linears hold torchao's int8 weights, one scale an output: a byte a weight. All else it
    shares with the model."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise UserError(f"perturb.{point.name}: torchao is not installed; pip install 'holdfast[torchao]'") from None
    quantized = shallow(model)
    chosen = {id(linear) for linear in decoder_linears(quantized).values()}
    quantize_(quantized, Int8WeightOnlyConfig(), filter_fn=lambda module, name: id(module) in chosen)
    yield Arm(quantized)
