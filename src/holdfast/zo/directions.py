"""The alignment subspace: one direction a tensor or a few of rank one, and weights that move along them alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.digest import digest
from holdfast.zo.noise import DIRECTION, words
from holdfast.zo.perturb import Draws, bundles, float32, wrong

TIES = ("tensor", "layer", "model")
OVERSAMPLED, ITERATIONS = 8, 6  # of the block power iteration: columns beside the rank, and rounds


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


@dataclass(frozen=True)
class Factors:
    """Rank-one directions left_k right_kᵀ of one matrix: `left` (r, out) and `right` (r, in), float32."""

    left: Tensor
    right: Tensor

    def __len__(self) -> int:
        return len(self.left)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.left.shape[1], self.right.shape[1]


Direction = Tensor | Factors
"""A whole Δ, which has one coefficient, or some parts of it, with one each."""


@torch.no_grad()
def singular_directions(model: nn.Module, origin: nn.Module, names: Iterable[str], rank: int) -> dict[str, Factors]:
    """The top `rank` singular directions σ_k u_k v_kᵀ of each Δ = θ − θ_origin, by block power iteration.

    `left` holds σ_k u_k, so that a coefficient of 1 adds that part of Δ once more. Raises `ValueError` as
    `alignment_directions` does, and for a tensor that is no matrix or has fewer than `rank` rows or columns.
    """
    found = {}
    for name in names:
        delta = alignment_directions(model, origin, [name])[name]
        if delta.dim() != 2 or min(delta.shape) < rank:
            raise ValueError(f"{name}: has no {rank} singular directions; its shape is {tuple(delta.shape)}")
        width = min(rank + OVERSAMPLED, *delta.shape)
        start = torch.randn(delta.shape[1], width, generator=torch.Generator().manual_seed(0)).to(delta)
        for _ in range(ITERATIONS):
            start = torch.linalg.qr(delta.T @ torch.linalg.qr(delta @ start).Q).Q
        left, values, right = torch.linalg.svd(delta @ start, full_matrices=False)
        found[name] = Factors((left * values).T[:rank].contiguous(), (start @ right.T).T[:rank].contiguous())
    return found


class Span:
    """θ_t = anchor_t + Σ_k c_tk·Δ_tk, and c is all that moves.

    The anchors are the weights at the start, in their own type; c is a float64, rounded to float32 where it meets Δ.
    Query i probes along signs ε_i ∈ {±1}^d. `tie` says which tensors share a sign, and so a coefficient: none but a
    `tensor` with itself, those of a `layer`, or all of the `model`. Of rank-one directions the k-th of each share
    theirs. c begins at `start`.

    Beside the weights it takes an anchor and, of a whole Δ, 4 bytes for each, so 6 bytes in half precision and 8 in
    float32, and scratch of 64 MiB, or of the largest matrix in float32 if that is more; twice that of rank-one ones.
    """

    def __init__(
        self,
        tensors: Mapping[str, nn.Parameter],
        directions: Mapping[str, Direction],
        *,
        tie: str = "tensor",
        start: float = 0.0,
        **options: Any,
    ) -> None:
        if tie not in TIES:
            raise ValueError(f"tie={tie}: choose one of {', '.join(TIES)}")
        self.tensors, self.draws = dict(tensors), Draws(tensors, **options)
        self.tie, self.start = tie, start
        shared = {
            "tensor": {k: k for k in tensors},
            "layer": self.draws.groups,
            "model": dict.fromkeys(tensors, "model"),
        }
        self.directions = {k: _on(directions[k], p.device) for k, p in self.tensors.items()}
        self.anchors = {k: p.detach().clone() for k, p in self.tensors.items()}
        # (tensor, k) -> what names its sign
        lines = {(t, k): f"{shared[tie][t]}#{k}" if k else shared[tie][t] for t, k in self._lines()}
        self.signs = {line: zlib.crc32(name.encode()) for line, name in lines.items()}
        self.coefficients = dict.fromkeys(lines, start)
        if start:
            self.restore()

    def _lines(self) -> Iterator[tuple[str, int]]:
        for name, direction in self.directions.items():
            for k in range(_parts(direction)):
                yield name, k

    def write(self, radius: float, *, step: int, query: int) -> None:
        """Forward weights := round(anchor + Σ (c + radius · ε)·Δ)."""
        self._write(self._moved([radius], [query], step))

    def move(self, coefficients: Sequence[float], *, step: int) -> None:
        """c += Σ_i coefficient_i · ε_i over the queries in order; forward weights := round(anchor + c·Δ)."""
        self.coefficients = self._moved(coefficients, range(len(coefficients)), step)
        self.restore()

    def restore(self) -> None:
        """Forward weights := round(anchor + c·Δ)."""
        self._write(self.coefficients)

    def leave(self) -> None:
        """Forward weights := anchor, also where c began elsewhere than at 0."""
        self._write(dict.fromkeys(self.coefficients, 0.0))

    @torch.no_grad()
    def drift(self) -> int:
        """How many forward weights differ from round(anchor + c·Δ)."""
        placed = (pair for bundle in self._placed(self.coefficients) for pair in bundle.items())
        return sum(wrong(value, self.tensors[name]) for name, value in placed)

    def _moved(self, coefficients: Sequence[float], queries: Sequence[int], step: int) -> dict[tuple[str, int], float]:
        found = dict(self.coefficients)
        drawn = words(DIRECTION, self.draws.stream(step), tensors=list(self.signs.values()), queries=queries)
        for coefficient, row in zip(coefficients, drawn.tolist(), strict=True):
            for line, word in zip(self.signs, row, strict=True):
                found[line] += coefficient if word % 2 == 0 else -coefficient
        return found

    @torch.no_grad()
    def _write(self, coefficients: Mapping[tuple[str, int], float]) -> None:
        for bundle in self._placed(coefficients):
            for name, value in bundle.items():
                self.tensors[name].copy_(value)

    def _placed(self, coefficients: Mapping[tuple[str, int], float]) -> Iterator[dict[str, Tensor]]:
        return placed(self.tensors, self.anchors, self.directions, coefficients)

    def header(self) -> dict[str, Any]:
        factored = any(isinstance(one, Factors) for one in self.directions.values())
        started = {"start": self.start.hex()} if self.start else {}
        return (
            self.draws.header()
            | started
            | {
                "kind": "singular" if factored else "subspace",
                "tie": self.tie,
                "directions": digest(flat(self.directions).items()),
            }
        )


def placed(
    tensors: Mapping[str, nn.Parameter],
    anchors: Mapping[str, Tensor],
    directions: Mapping[str, Direction],
    coefficients: Mapping[tuple[str, int], float],
) -> Iterator[dict[str, Tensor]]:
    """anchor + Σ c·Δ in float32, some tensors at a time, whose room the next ones take; products and sums are rounded
    apart, in the order of k, so that no backend fuses them."""
    for bundle in bundles(tensors):
        sizes, device = [p.numel() for p in bundle.values()], next(iter(bundle.values())).device
        parts = torch.empty(sum(sizes), dtype=torch.float32, device=device).split(sizes)
        found = {k: part.view_as(anchors[k]) for k, part in zip(bundle, parts, strict=True)}
        for name, value in found.items():
            direction = directions[name]
            moved = [(k, c) for k in range(_parts(direction)) if (c := float32(coefficients[name, k]))]
            if not moved:  # the sum would lose the sign of a zero
                value.copy_(anchors[name])
            for place, (k, c) in enumerate(moved):
                _add(direction, k, c, value, anchors[name] if place == 0 else None)
        yield found


def flat(directions: Mapping[str, Direction]) -> dict[str, Tensor]:
    """Tensors by name, as a file holds them: of rank-one directions `<name>.left` and `<name>.right`."""
    found: dict[str, Tensor] = {}
    for name, one in directions.items():
        found |= {f"{name}.left": one.left, f"{name}.right": one.right} if isinstance(one, Factors) else {name: one}
    return found


def along(direction: Direction, gradient: Tensor) -> list[float]:
    """Of each coefficient its slope: the inner product of a matrix's gradient with what it multiplies."""
    if isinstance(direction, Factors):
        products: list[float] = ((direction.left @ gradient.float()) * direction.right).sum(1).tolist()
        return products
    return [float((direction * gradient.float()).sum())]


def _parts(direction: Direction) -> int:
    """How many coefficients it has."""
    return len(direction) if isinstance(direction, Factors) else 1


def _on(direction: Direction, device: torch.device) -> Direction:
    if isinstance(direction, Factors):
        return Factors(direction.left.to(device, torch.float32), direction.right.to(device, torch.float32))
    return direction.detach().to(device, torch.float32)


def _add(direction: Direction, k: int, c: float, value: Tensor, anchor: Tensor | None) -> None:
    """value := anchor + c·Δ_k, or value += c·Δ_k where there is no anchor."""
    if not isinstance(direction, Factors):
        torch.mul(direction, c, out=value)
    elif anchor is not None:
        torch.mul((direction.left[k] * c)[:, None], direction.right[k], out=value)
    else:
        value.add_((direction.left[k] * c)[:, None] * direction.right[k])
    if anchor is not None:
        value.add_(anchor)
