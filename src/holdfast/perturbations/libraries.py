"""Quantization of the decoder's linear layers by the libraries that models are shipped with: bitsandbytes, torchao,
and gguf, which writes what llama.cpp loads.

Embeddings, head and vectors stay as they are, and so does what `decoder_stack` refuses, as experts are. A level is the
number of bits of a weight.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from holdfast.errors import UserError
from holdfast.perturbations.point import PERTURBATIONS, Arm, Bench, Level, Perturbation, Point
from holdfast.settings.options import Config, Count

OUTLIERS = 6.0  # LLM.int8's threshold and the blocks of 4 bits, as a BitsAndBytesConfig of transformers has them
BLOCK = 64


class OfLibrary(Perturbation):
    """What a library rounds is the same each time, and has the bits that its scheme has."""

    quantizes = True
    level = Level("bits", 4, 8, whole=True)

    @property
    @abstractmethod
    def bits(self) -> tuple[int, ...]:
        """The levels that there are."""

    def agree(self, key: str, cfg: Config) -> None:
        super().agree(key, cfg)
        if set(self.levels) - set(self.bits):
            known = ", ".join(map(str, self.bits))
            raise UserError(f"{key}.levels={self.levels}: bits of a weight, here {known}")
        if self.most_draws > 1:
            raise UserError(f"{key}.draws={self.draws}: it rounds the same way each time; give 1")


@PERTURBATIONS.register("bnb")
class BitsAndBytes(OfLibrary):
    """A copy whose decoder linears are bitsandbytes', each where its original is, made as transformers makes them: it
    takes a byte a weight, or about half of one. All else it shares with the model.

    int8 is LLM.int8: an input column in which some token of the batch has an outlier is not rounded. What a prompt
    gets therefore depends on what else is in its batch.
    """

    scheme: Literal["int8", "nf4", "fp4"] = Field(description="the format of the weights")
    double_quantization: bool = Field(default=False, description="of nf4 and fp4: blocks' scales are quantized too")

    keeps = "packed"

    @property
    def bits(self) -> tuple[int, ...]:
        return (8,) if self.scheme == "int8" else (4,)

    @property
    def stored(self) -> float:
        return 8 if self.scheme == "int8" else 4 + (8 if self.double_quantization else 32) / BLOCK

    def agree(self, key: str, cfg: Config) -> None:
        super().agree(key, cfg)
        if self.scheme == "int8" and self.double_quantization:
            raise UserError(f"{key}.double_quantization=true: int8 has no blocks; set it to false")

    def ran(self, device: str) -> str:
        how = "bitsandbytes CUDA kernel" if device == "cuda" else "bitsandbytes CPU fallback"
        if self.scheme == "int8":
            scales = "symmetric, a scale for each output and token"
            return f"{how}, {scales}, input columns with outliers from {OUTLIERS:g} not rounded, no clipping"
        scales = "scales in 8 bits" if self.double_quantization else "scales in float32"
        return f"{how}, {self.scheme}, blocks of {BLOCK} weights, {scales}, computed in float32, no clipping"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.packing import bnb_4bit, bnb_int8, replaced

        def packed(linear: Any) -> Any:
            if self.scheme == "int8":
                return bnb_int8(linear, OUTLIERS)
            return bnb_4bit(linear, self.scheme, BLOCK, self.double_quantization)

        yield Arm(replaced(model, packed))


@PERTURBATIONS.register("torchao")
class TorchAO(OfLibrary):
    """A copy whose decoder linears hold torchao's weights, a byte each: of int8 and fp8 (e4m3) they alone are rounded,
    of w8a8 and w4a8 the inputs too, in int8 with a scale for each token. All else it shares with the model."""

    scheme: Literal["int8", "fp8", "w8a8", "w4a8"] = Field(description="the format of weights, and of inputs")
    group_size: Count | None = Field(default=None, description="inputs that share a scale; null: all of an output")

    keeps = "packed"

    @property
    def bits(self) -> tuple[int, ...]:
        return (4,) if self.scheme == "w4a8" else (8,)

    @property
    def stored(self) -> float:
        return 8 + (40 / self.group_size if self.group_size else 0)  # a scale in float32, a zero point in int8

    def ran(self, device: str) -> str:
        integer = self.scheme == "w8a8" and not self.group_size
        scales = f"groups of {self.group_size} inputs" if self.group_size else "a scale for each output"
        sign = "symmetric" if integer else "asymmetric"
        inputs = f"inputs in int8, {sign} for each token" if "a8" in self.scheme else "inputs as they are"
        how = f"{device.upper()} integer kernel" if integer else "dequantized as it runs"
        clipped = "no clipping" if self.scheme == "fp8" else "clipping of half a step at most"
        return f"torchao {self.scheme}, {how}, weights symmetric, {scales}, {inputs}, {clipped}"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.packing import by_torchao

        if self.group_size:
            whole_groups(point.name, model, self.group_size)
        yield Arm(by_torchao(model, self.scheme, self.group_size))


@PERTURBATIONS.register("gguf")
class GGUF(OfLibrary):
    """Weights as a GGUF file of llama.cpp holds them, Q8_0, Q5_0 or Q4_0 by the level: rounded by gguf's own quantizer
    in blocks of 32 inputs and dequantized into the model's dtype.

    llama.cpp itself keeps norms and biases in float32, and rounds the embeddings to the same type and the head, or
    embeddings tied to it, to Q6_K (beside Q8_0 to Q8_0): here these stay as they are. It also rounds inputs to 8 bits
    in most of its kernels, which is not done here.
    """

    label = "{name} Q{level:g}_0"

    @property
    def bits(self) -> tuple[int, ...]:
        return (8, 5, 4)

    def ran(self, device: str) -> str:
        types = ", ".join(f"Q{level:g}_0" for level in self.levels)
        return f"gguf {types}, blocks of 32 inputs scaled by their largest weight, float16 scales, dequantized"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        import torch

        from holdfast.perturbations.rounding import gguf_rounded
        from holdfast.perturbations.snapshot import restored

        matrices = whole_groups(point.name, model, 32)
        with restored(matrices):
            with torch.no_grad():
                for p in matrices.values():
                    p.copy_(gguf_rounded(p, int(point.level)))
            yield Arm(model)


def whole_groups(name: str, model: Any, size: int) -> dict[str, Any]:
    """The decoder's matrices. Raises `UserError` for one whose rows are not so many inputs, or a multiple."""
    from holdfast.perturbations.snapshot import decoder_matrices

    matrices = decoder_matrices(model)
    for key, p in matrices.items():
        if p.shape[1] % size:
            raise UserError(f"perturb.{name}: {key} has {p.shape[1]} inputs, not a multiple of its blocks of {size}")
    return matrices
