"""Layers in the formats of libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from holdfast.perturbations.snapshot import decoder_linears, shallow


def replaced(model: Any, made: Callable[[nn.Linear], nn.Module]) -> Any:
    """A copy with other layers in the place of the decoder's linear ones. They are set to evaluate: in training
    bitsandbytes does not round inputs on a CPU."""
    quantized = shallow(model)
    for name, linear in decoder_linears(quantized).items():
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        setattr(quantized.get_submodule(parent), child, made(linear).eval())
    return quantized


def bnb_int8(linear: nn.Linear, threshold: float) -> nn.Module:
    """The same layer in LLM.int8, on the same device."""
    import bitsandbytes as bnb

    new = bnb.nn.Linear8bitLt(*_shape(linear), has_fp16_weights=False, threshold=threshold, device="meta")
    weight = linear.weight.detach().cpu().half()
    new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return _placed(new, linear)


def bnb_4bit(linear: nn.Linear, scheme: str, block: int, double: bool) -> nn.Module:
    """The same layer in `nf4` or `fp4`, on the same device; `double`: scales are quantized too."""
    import bitsandbytes as bnb

    how = {"quant_type": scheme, "compress_statistics": double}
    new = bnb.nn.Linear4bit(*_shape(linear), compute_dtype=torch.float32, device="meta", **how)
    new.support_avx512bf16_for_cpu = False  # some CPUs would compute in bfloat16, and others not
    weight = linear.weight.detach().cpu()
    new.weight = bnb.nn.Params4bit(weight, requires_grad=False, blocksize=block, **how)
    return _placed(new, linear)


def _shape(linear: nn.Linear) -> tuple[int, int, bool]:
    """For a layer that is made without values, which would be drawn for nothing."""
    return linear.in_features, linear.out_features, linear.bias is not None


def _placed(new: nn.Module, linear: nn.Linear) -> nn.Module:
    if linear.bias is not None:
        new.bias = nn.Parameter(linear.bias.detach().cpu(), requires_grad=False)
    return new.to(linear.weight.device)


def by_torchao(model: Any, scheme: str, group_size: int | None) -> Any:
    """A copy whose decoder linears hold torchao's weights."""
    from torchao.quantization import quantize_

    quantized = shallow(model)
    chosen = {id(linear) for linear in decoder_linears(quantized).values()}
    quantize_(quantized, _config(scheme, group_size), filter_fn=lambda module, name: id(module) in chosen)
    return quantized


def _config(scheme: str, group_size: int | None) -> Any:
    """Without torchao's settings of the compiler, which would outlast the point."""
    from torchao import quantization as ao

    if scheme == "w8a8" and not group_size:
        return ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    if scheme in ("w8a8", "w4a8"):
        by = ao.PerGroup(group_size) if group_size else ao.PerAxis(0)
        bits = torch.int4 if scheme == "w4a8" else torch.int8  # type: ignore[attr-defined]
        return ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=bits, weight_granularity=by)
    config = ao.Int8WeightOnlyConfig if scheme == "int8" else ao.Float8WeightOnlyConfig
    return config(granularity=ao.PerGroup(group_size) if group_size else ao.PerRow(), set_inductor_config=False)
