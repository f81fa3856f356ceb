"""Simulated quantization of the decoder's linear layers: what is rounded is computed with in the model's own dtype.

Embeddings, head and vectors stay as they are, and so does what `decoder_stack` refuses, as experts are. A level is the
number of bits of a weight. Quantizers of libraries are in `libraries`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import Field

from holdfast.errors import UserError
from holdfast.perturbations.point import PERTURBATIONS, Arm, Bench, Level, Perturbation, Point
from holdfast.settings.options import Config, Count


@PERTURBATIONS.register("rtn")
class RoundToNearest(Perturbation):
    """Symmetric rounding in groups of inputs. Draw 0 is the plain one; in each further draw the groups begin elsewhere
    along the inputs."""

    group_size: Count = Field(description="inputs that share a scale")

    quantizes = True
    level = Level("bits", 2, 16, whole=True)
    label = "{name} {level:g} bit"

    def reads(self, level: float) -> str:
        return "{name} ternary" if level == 2 else self.label  # the levels of two bits are -1, 0 and 1

    def ran(self, device: str) -> str:
        return f"simulated, symmetric, {self._groups()}, no clipping"

    def _groups(self) -> str:
        return f"groups of {self.group_size} inputs" + " that begin elsewhere at each draw" * (self.most_draws > 1)

    def agree(self, key: str, cfg: Config) -> None:
        super().agree(key, cfg)
        size, most = self.group_size, self.most_draws
        spare = cfg.evaluate.tune_draws if most > 1 and "evaluate" in cfg else 0  # beyond those that are tested on
        if most + spare > size:
            beside = f" beside evaluate.tune_draws={spare}" if spare else ""
            raise UserError(
                f"{key}.draws={self.draws}: groups of {size} begin at {size} places; give 1 to {size - spare}{beside}"
            )

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        import torch

        from holdfast.perturbations.rounding import offset_of, rounded
        from holdfast.perturbations.snapshot import decoder_matrices, restored

        matrices = decoder_matrices(model)
        self._check(point.name, matrices)
        offset = offset_of(bench.noise_seed, point.draw, self.group_size)
        with restored(matrices):
            with torch.no_grad():
                for p in matrices.values():
                    p.copy_(rounded(self._turned(p), int(point.level), self.group_size, offset))
            yield Arm(model)

    def _check(self, name: str, matrices: Any) -> None:
        """A row that is one group has no other place where groups could begin."""
        narrow = [f"{key} has {p.shape[1]}" for key, p in matrices.items() if p.shape[1] <= self.group_size]
        if self.most_draws > 1 and narrow:
            raise UserError(
                f"perturb.{name}.draws={self.draws}: {narrow[0]} inputs, one group of {self.group_size}, which begins "
                "nowhere else; give draws=1 or smaller groups"
            )

    def _turned(self, values: Any) -> Any:
        """Weights or inputs as they are rounded."""
        return values


@PERTURBATIONS.register("fake_quant")
class FakeQuantized(RoundToNearest):
    """Weights rounded as by `rtn`, and the inputs of every linear layer too, with a scale for each token that is found
    as it runs.

    With `rotation` both are rounded after a rotation by Hadamard blocks, which spreads outliers over a block and
    cancels in the product, as in QuaRot (Ashkboos et al., 2024). There some rotations are merged into weights; here
    every layer turns its own inputs. A block is as wide as the largest power of two that divides the layer's width and
    is no more than `rotation`.
    """

    activation_bits: Annotated[int, Ge(2), Le(16)] = Field(description="bits of the inputs of linear layers")
    rotation: Annotated[int, Ge(2)] | None = Field(
        default=None, description="widest Hadamard block that inputs are rotated by; null: none"
    )

    label = "{name}"

    def ran(self, device: str) -> str:
        turned = f", rotated by Hadamard blocks of up to {self.rotation}" if self.rotation else ""
        inputs = f"inputs in {self.activation_bits} bits with a scale for each token"
        return f"simulated, symmetric, weights in {self._groups()}, {inputs}{turned}, no clipping"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.rounding import rounded
        from holdfast.perturbations.snapshot import decoder_linears

        def quantize(module: Any, args: Any) -> Any:
            x, *rest = args
            return (rounded(self._turned(x), self.activation_bits, x.shape[-1]).to(x.dtype), *rest)

        with super().applied(model, point, bench) as arm, ExitStack() as hooks:
            for linear in decoder_linears(model).values():
                hooks.callback(linear.register_forward_pre_hook(quantize).remove)
            yield arm

    def _turned(self, values: Any) -> Any:
        from holdfast.perturbations.rounding import rotated

        return rotated(values, self.rotation) if self.rotation else values
