"""Quantization of the decoder's linear layers: the kernels of bitsandbytes and torchao, and simulations. A level is
the number of bits of a weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import Field

from holdfast.errors import UserError
from holdfast.perturbations.point import PERTURBATIONS, Arm, Bench, Level, Perturbation, Point
from holdfast.settings.options import Count


@PERTURBATIONS.register("rtn")
class RoundToNearest(Perturbation):
    """Symmetric rounding in groups of inputs, simulated: what is rounded is computed with in the model's own dtype."""

    group_size: Count = Field(description="inputs that share a scale")

    quantizes = True
    level = Level("bits", 2, 16, whole=True)
    label = "{name} {level:g} bit"

    def ran(self, device: str) -> str:
        return "simulated"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        import torch

        from holdfast.perturbations.rounding import rounded
        from holdfast.perturbations.snapshot import decoder_matrices, restored

        matrices = decoder_matrices(model)
        with restored(matrices):
            with torch.no_grad():
                for p in matrices.values():
                    p.copy_(rounded(p, int(point.level), self.group_size))
            yield Arm(model)


@PERTURBATIONS.register("fake_quant")
class FakeQuantized(RoundToNearest):
    """Weights rounded as by `rtn`, and the inputs of every linear layer too, with a scale for each token that is found
    as it runs; simulated."""

    activation_bits: Annotated[int, Ge(2), Le(16)] = Field(description="bits of the inputs of linear layers")

    label = "{name}"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.rounding import rounded
        from holdfast.perturbations.snapshot import decoder_linears

        def quantize(module: Any, args: Any) -> Any:
            x, *rest = args
            return (rounded(x, self.activation_bits, x.shape[-1]).to(x.dtype), *rest)

        with super().applied(model, point, bench) as arm, ExitStack() as hooks:
            for linear in decoder_linears(model).values():
                hooks.callback(linear.register_forward_pre_hook(quantize).remove)
            yield arm


@PERTURBATIONS.register("bnb")
class BitsAndBytes(Perturbation):
    """A copy whose decoder linears are bitsandbytes', each where its original is: it takes a byte a weight, or about
    half of one. All else it shares with the model."""

    scheme: Literal["int8", "nf4", "fp4"] = Field(description="the format of the weights")

    quantizes = True
    keeps = "packed"
    level = Level("bits", 4, 8, whole=True)

    def ran(self, device: str) -> str:
        return "real kernel" if device == "cuda" else "CPU fallback"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.rounding import bnb_linear
        from holdfast.perturbations.snapshot import decoder_linears, shallow

        quantized = shallow(model)
        for name, linear in decoder_linears(quantized).items():
            parent, _, child = name.removesuffix(".weight").rpartition(".")
            setattr(quantized.get_submodule(parent), child, bnb_linear(linear, self.scheme))
        yield Arm(quantized)


@PERTURBATIONS.register("torchao")
class TorchAO(Perturbation):
    """A copy whose decoder linears hold torchao's int8 weights, one scale an output: a byte a weight. All else it
    shares with the model."""

    quantizes = True
    keeps = "packed"
    level = Level("bits", 8, 8, whole=True)

    def ran(self, device: str) -> str:
        return "real kernel"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.snapshot import decoder_linears, shallow

        try:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
        except ImportError:
            raise UserError(
                f"perturb.{point.name}: torchao is not installed; pip install 'holdfast[torchao]'"
            ) from None
        quantized = shallow(model)
        chosen = {id(linear) for linear in decoder_linears(quantized).values()}
        quantize_(quantized, Int8WeightOnlyConfig(), filter_fn=lambda module, name: id(module) in chosen)
        yield Arm(quantized)
