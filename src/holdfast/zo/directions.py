"""The alignment subspace: one direction a tensor, and weights that move along it alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.digest import digest
from holdfast.zo.kernels import add_noise
from holdfast.zo.noise import DIRECTION, Stream, Target, words
from holdfast.zo.perturb import Draws, float32, wrong

TIES = ("tensor", "layer", "model")
SCRATCH = 2**24  # float32 numbers, 64 MiB: tensors are written together, so many at a time


@torch.no_grad()
def alignment_directions(model: nn.Module, origin: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Δ = θ − θ_origin of the tensors named, float32, on the devices of `model`.

    `origin` is the model before alignment. Raises `ValueError` for a tensor that it has not, or in another shape.
    """
    after, before = dict(model.named_parameters()), dict(origin.named_parameters())
    found = {}
    for name in names:
        if name not in after or name not in before or after[name].shape != before[name].shape:
            raise ValueError(f"{name}: not a tensor of one shape in both models, before and after alignment")
        found[name] = after[name].detach().float() - before[name].detach().to(after[name].device).float()
    return found


class Span:
    """θ_t = anchor_t + c_t·Δ_t, and c is all that moves.

    The anchors are the weights at the start, in their own type; c_t is a float64, rounded to float32 where it meets Δ.
    Query i probes along signs ε_i ∈ {±1}^d under weight noise σ·s∘z_i, which no move keeps. `tie` says which tensors
    share a sign, and so a coefficient: none but a `tensor` with itself, those of a `layer`, or all of the `model`.

    Beside the weights it takes an anchor and 4 bytes of Δ for each, so 6 bytes in half precision and 8 in float32,
    and scratch of 64 MiB, or of the largest matrix in float32 if that is more.
    """

    def __init__(
        self,
        tensors: Mapping[str, nn.Parameter],
        directions: Mapping[str, Tensor],
        *,
        sigma: float,
        tie: str = "tensor",
        **options: Any,
    ) -> None:
        if tie not in TIES:
            raise ValueError(f"tie={tie}: choose one of {', '.join(TIES)}")
        self.tensors, self.draws = dict(tensors), Draws(tensors, **options)
        self.sigma, self.tie = sigma, tie
        shared = {
            "tensor": {k: k for k in tensors},
            "layer": self.draws.groups,
            "model": dict.fromkeys(tensors, "model"),
        }
        self.signs = [zlib.crc32(shared[tie][name].encode()) for name in self.tensors]
        self.directions = {k: directions[k].detach().to(p.device, torch.float32) for k, p in self.tensors.items()}
        self.anchors = {k: p.detach().clone() for k, p in self.tensors.items()}
        self.coefficients = dict.fromkeys(self.tensors, 0.0)

    def write(self, radius: float, *, step: int, query: int) -> None:
        """Forward weights := round(anchor + (c + radius · ε)·Δ + σ s∘z); the same z for every radius."""
        asked = [query] if self.sigma else []
        self._write(self._moved([radius], [query], step), asked, self.draws.stream(step))

    def move(self, coefficients: Sequence[float], *, step: int) -> None:
        """c += Σ_i coefficient_i · ε_i over the queries in order; forward weights := round(anchor + c·Δ)."""
        self.coefficients = self._moved(coefficients, range(len(coefficients)), step)
        self.restore()

    def restore(self) -> None:
        """Forward weights := round(anchor + c·Δ)."""
        self._write(self.coefficients, [], self.draws.stream(0))

    @torch.no_grad()
    def drift(self) -> int:
        """How many forward weights differ from round(anchor + c·Δ)."""
        placed = (pair for bundle in self._placed(self.coefficients) for pair in bundle.items())
        return sum(wrong(value, self.tensors[name]) for name, value in placed)

    def _moved(self, coefficients: Sequence[float], queries: Sequence[int], step: int) -> dict[str, float]:
        found = dict(self.coefficients)
        drawn = words(DIRECTION, self.draws.stream(step), tensors=self.signs, queries=queries)
        for coefficient, row in zip(coefficients, drawn.tolist(), strict=True):
            for name, word in zip(self.draws.names, row, strict=True):
                found[name] += coefficient if word % 2 == 0 else -coefficient
        return found

    @torch.no_grad()
    def _write(self, coefficients: Mapping[str, float], queries: Sequence[int], stream: Stream) -> None:
        for bundle in self._placed(coefficients):
            noisy = {name: [float32(self.sigma * self.draws.scales[name])] * len(queries) for name in bundle}
            targets = [Target(v, self.tensors[k], self.draws.names[k], noisy[k]) for k, v in bundle.items()]
            add_noise(targets, queries, stream, keep=False)

    def _placed(self, coefficients: Mapping[str, float]) -> Iterator[dict[str, Tensor]]:
        """anchor + c·Δ in float32, some tensors at a time, whose room the next ones take; product and sum are rounded
        apart, so that no backend fuses them."""
        for device, bundle in self._bundles():
            scratch = torch.empty(sum(self.tensors[k].numel() for k in bundle), dtype=torch.float32, device=device)
            parts = scratch.split([self.tensors[k].numel() for k in bundle])
            found = {k: part.view_as(self.anchors[k]) for k, part in zip(bundle, parts, strict=True)}
            for name, value in found.items():
                if c := float32(coefficients[name]):
                    torch.mul(self.directions[name], c, out=value).add_(self.anchors[name])
                else:  # the sum would lose the sign of a zero
                    value.copy_(self.anchors[name])
            yield found

    def _bundles(self) -> Iterator[tuple[torch.device, list[str]]]:
        """Tensors of one device, of SCRATCH elements together at most, or a single one that is larger."""
        for device in dict.fromkeys(p.device for p in self.tensors.values()):
            bundle: list[str] = []
            for name in [k for k, p in self.tensors.items() if p.device == device]:
                if bundle and sum(self.tensors[k].numel() for k in [*bundle, name]) > SCRATCH:
                    yield device, bundle
                    bundle = []
                bundle.append(name)
            yield device, bundle

    def header(self) -> dict[str, Any]:
        return self.draws.header() | {
            "kind": "subspace",
            "tie": self.tie,
            "directions": digest(self.directions.items()),
        }
