"""The alignment subspace: one direction a tensor, and masters that move along it alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.digest import digest
from holdfast.zo.noise import DIRECTION, Stream, words
from holdfast.zo.perturb import Masters, float32

TIES = ("tensor", "layer", "model")


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


class Span(Masters):
    """θ_t = anchor_t + c_t·Δ_t: the masters' values are this sum, and c is all that moves.

    The anchors are the weights at the start; c_t is a float64, rounded to float32 where it meets Δ. Query i
    probes along signs ε_i ∈ {±1}^d under weight noise σ·s∘z_i, which no move keeps. `tie` says which tensors share
    a sign, and so a coefficient: none but a `tensor` with itself, those of a `layer`, or all of the `model`.
    """

    def __init__(
        self,
        tensors: Mapping[str, nn.Parameter],
        directions: Mapping[str, Tensor],
        *,
        sigma: float,
        seed: int,
        tie: str = "tensor",
        noise: str = "rademacher",
        scales: Mapping[str, float] | None = None,
    ) -> None:
        if tie not in TIES:
            raise ValueError(f"tie={tie}: choose one of {', '.join(TIES)}")
        super().__init__(tensors, seed=seed, noise=noise, scales=scales)
        self.sigma, self.tie = sigma, tie
        shared = {"tensor": {k: k for k in tensors}, "layer": self.groups, "model": dict.fromkeys(tensors, "model")}
        self.signs = [zlib.crc32(shared[tie][name].encode()) for name in self.tensors]
        self.directions = {k: directions[k].detach().to(v.device, torch.float32) for k, v in self.values.items()}
        self.anchors = {k: v.clone() for k, v in self.values.items()}
        self.coefficients = dict.fromkeys(self.tensors, 0.0)

    def write(self, radius: float, *, step: int, query: int) -> None:
        """Forward weights := round(anchor + (c + radius · ε)·Δ + σ s∘z); the same z for every radius."""
        self._place(self._moved([radius], [query], step))
        if self.sigma:
            super().write(self.sigma, step=step, query=query)
        else:
            super().restore()

    def move(self, coefficients: Sequence[float], *, step: int) -> None:
        """c += Σ_i coefficient_i · ε_i over the queries in order; forward weights := round(anchor + c·Δ)."""
        self.coefficients = self._moved(coefficients, range(len(coefficients)), step)
        self.restore()

    def restore(self) -> None:
        """Forward weights := round(anchor + c·Δ)."""
        self._place(self.coefficients)
        super().restore()

    def _moved(self, coefficients: Sequence[float], queries: Sequence[int], step: int) -> dict[str, float]:
        stream, found = Stream(self.noise, self.seed, step), dict(self.coefficients)
        drawn = words(DIRECTION, stream, tensors=self.signs, queries=queries)
        for coefficient, row in zip(coefficients, drawn.tolist(), strict=True):
            for name, word in zip(self.names, row, strict=True):
                found[name] += coefficient if word % 2 == 0 else -coefficient
        return found

    @torch.no_grad()
    def _place(self, coefficients: Mapping[str, float]) -> None:
        """Values := anchor + c·Δ, product and sum rounded apart, so that no backend fuses them."""
        for name, value in self.values.items():
            if c := float32(coefficients[name]):
                torch.mul(self.directions[name], c, out=value).add_(self.anchors[name])
            else:  # the sum would lose the sign of a zero
                value.copy_(self.anchors[name])

    def header(self) -> dict[str, Any]:
        return super().header() | {
            "kind": "subspace",
            "tie": self.tie,
            "directions": digest(self.directions.items()),
        }
