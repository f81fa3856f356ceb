"""Layer-wise robustness sensitivity from forward passes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from holdfast.zo.perturb import Masters


@torch.inference_mode()
def sensitivity(
    losses: Callable[[], Tensor],
    groups: dict[str, dict[str, nn.Parameter]],
    *,
    sigma: float,
    draws: int,
    seed: int,
    progress: Callable[[list[tuple[str, int]]], Iterable[tuple[str, int]]] = iter,
) -> dict[str, Tensor]:
    """S(σ) of every group, kept per draw and example: group -> (draws, n), on the CPU.

    S = E_z[½(L(θ+σ s∘z) + L(θ−σ s∘z))] − L(θ), z non-zero in that group only. The antithetic mean cancels
    the first-order term exactly. All groups share the batch and the seeds; weights end bitwise as they began.
    `losses()` gives per-example losses of shape (n,).
    """
    clean = losses().float().cpu()
    rises: dict[str, list[Tensor]] = {group: [] for group in groups}
    for group, draw in progress([(group, draw) for group in groups for draw in range(draws)]):
        masters = Masters(groups[group], seed=seed)
        sides = []
        for sign in (+1, -1):
            masters.write(sign * sigma, step=draw, query=0)
            sides.append(losses().float().cpu())
        masters.restore()
        rises[group].append((sides[0] + sides[1]) / 2 - clean)
    return {group: torch.stack(found) for group, found in rises.items()}
