"""Low-rank adapters that move by forward passes: weights are written as anchor + BA, and A and B alone move."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.directions import Factors, placed
from holdfast.zo.kernels import add_noise
from holdfast.zo.noise import Target
from holdfast.zo.perturb import Draws, Masters, float32, wrong

FIRST = 2**32 - 1  # the step whose noise A begins as; no refinement is so long


class LowRank:
    """θ_t = anchor_t + B_t A_t with A (rank, in) and B (out, rank) in float32 (LoRA, Hu et al., ICLR 2022).

    A begins as noise of rms 1/√in, of the engine's counter and so of the same bits anywhere, and B at zero. A query
    displaces both along s∘z: s of A is its rms at the start, and s of B such that a displacement of B alone by radius
    μ displaces the matrix by μ relative to its own rms, on average. Options are those of `Draws`.

    Beside the weights it takes an anchor in their own type, 8 bytes for each element of A and B, and scratch of twice
    64 MiB, or of the largest matrix in float32 if that is more. Raises `ValueError` for a tensor that is no matrix, or
    has fewer than `rank` rows or columns.
    """

    def __init__(self, tensors: Mapping[str, nn.Parameter], *, rank: int, **options: Any) -> None:
        for name, p in tensors.items():
            if p.dim() != 2 or min(p.shape) < rank:
                raise ValueError(f"{name}: takes no adapter of rank {rank}; its shape is {tuple(p.shape)}")
        self.tensors, self.draws, self.rank = dict(tensors), Draws(tensors, **options), rank
        self.anchors = {k: p.detach().clone() for k, p in self.tensors.items()}
        scales, parts = dict[str, float](), dict[str, nn.Parameter]()
        for name, p in self.tensors.items():
            rows, columns = p.shape
            scales |= {f"{name}.A": 1 / math.sqrt(columns)}
            scales |= {f"{name}.B": self.draws.scales[name] * math.sqrt(columns / rank)}
            parts |= {f"{name}.A": _zeros(rank, columns, p), f"{name}.B": _zeros(rows, rank, p)}
        self.parts = Masters(parts, **options | {"scales": scales})
        self._begin()
        self.restore()

    @torch.no_grad()
    def _begin(self) -> None:
        draws = self.parts.draws
        names = [name for name in self.parts.tensors if name.endswith(".A")]
        add_noise(
            [
                Target(self.parts.values[k], self.parts.tensors[k], draws.names[k], [float32(draws.scales[k])])
                for k in names
            ],
            [0],
            draws.stream(FIRST),
            keep=True,
        )

    def write(self, radius: float, *, step: int, query: int) -> None:
        """Forward weights := round(anchor + (B + radius · s∘z)(A + radius · s∘z))."""
        self.parts.write(radius, step=step, query=query)
        self._write()

    def move(self, coefficients: Sequence[float], *, step: int) -> None:
        """A and B += Σ_i coefficient_i · s∘z_i over the queries in order; forward weights := round(anchor + BA)."""
        self.parts.move(coefficients, step=step)
        self._write()

    def restore(self) -> None:
        """Forward weights := round(anchor + BA)."""
        self.parts.restore()
        self._write()

    @torch.no_grad()
    def leave(self) -> None:
        """Forward weights := anchor."""
        for name, anchor in self.anchors.items():
            self.tensors[name].copy_(anchor)

    @torch.no_grad()
    def drift(self) -> int:
        """How many forward weights differ from round(anchor + BA)."""
        self.parts.restore()
        return sum(wrong(value, self.tensors[name]) for found in self._placed() for name, value in found.items())

    @torch.no_grad()
    def _write(self) -> None:
        for found in self._placed():
            for name, value in found.items():
                self.tensors[name].copy_(value)

    def _placed(self) -> Iterator[dict[str, Tensor]]:
        parts = self.parts.tensors
        products = {k: Factors(parts[f"{k}.B"].T.contiguous(), parts[f"{k}.A"].detach()) for k in self.tensors}
        ones = {(name, k): 1.0 for name in products for k in range(self.rank)}
        return placed(self.tensors, self.anchors, products, ones)

    def header(self) -> dict[str, Any]:
        return self.draws.header() | {"kind": "low_rank", "rank": self.rank}


def _zeros(rows: int, columns: int, like: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros(rows, columns, device=like.device), requires_grad=False)
