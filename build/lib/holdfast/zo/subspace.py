"""Refinement within the alignment subspace: one coefficient a tensor, d ≈ 10² instead of 10⁹."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from holdfast.zo.digest import fingerprint
from holdfast.zo.directions import Span
from holdfast.zo.prefix import PrefixReuse
from holdfast.zo.refiner import TwoPointRefiner
from holdfast.zo.trajectory import logged_scales


class SubspaceRefiner(TwoPointRefiner):
    """g_i = (L(c + μ ε_i) − L(c − μ ε_i)) / 2μ, then c ← c − lr · mean_i g_i ε_i, where θ_t = θ_t,start + c_t·Δ_t.

    `directions` names the tensors and gives their Δ, of the same shapes (see `alignment_directions`). Both sides
    of a query are evaluated under the same weight noise σ·rms(W)∘z_i on those tensors, fresh for every query;
    σ = 0 is none. `tie` says which tensors share a coefficient: the fewer there are, the less of each step is noise.
    All else is as in `ZeroOrderRefiner`; `masters.coefficients` is c. Its trajectory holds the hash
    of the directions, and its replay needs the model before alignment.

    Raises `ValueError` for a direction that is not of the name and shape of a tensor of the model.
    """

    masters: Span

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Tensor],
        *,
        directions: Mapping[str, Tensor],
        mu: float,
        lr: float,
        queries: int = 1,
        sigma: float,
        tie: str = "tensor",
        noise: str = "rademacher",
        normalize: str = "none",
        seed: int = 0,
        trajectory: Path | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        named = dict(model.named_parameters())
        for name, direction in directions.items():
            if name not in named or named[name].shape != direction.shape:
                raise ValueError(f"directions: the model has no tensor {name} of shape {tuple(direction.shape)}")
        base = fingerprint(model) if trajectory else ""
        scales = logged_scales(trajectory, directions) if trajectory else None
        drawn = {"seed": seed, "noise": noise, "scales": scales}
        masters = Span({k: named[k] for k in directions}, directions, sigma=sigma, tie=tie, **drawn)
        reuse = PrefixReuse(model, [], "off")  # directions are as a rule of all layers
        super().__init__(model, loss_fn, masters, reuse, mu=mu, lr=lr, queries=queries, normalize=normalize)
        if trajectory:
            self._resume(trajectory, base, {"sigma": sigma}, context)
