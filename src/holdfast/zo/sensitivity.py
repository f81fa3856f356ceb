"""Layer-wise robustness sensitivity from forward passes alone: by a probe of its own, or from a refinement's own
evaluations, the rises of random subsets regressed on their masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.parallel import ranks, shared_out
from holdfast.zo.perturb import Masters
from holdfast.zo.prefix import LayerStates, layers_below

SURE = 2.58  # standard errors


@dataclass(frozen=True)
class Sides:
    """Per-example losses of one group, float32 on the CPU: clean (n,), up and down (draws, n)."""

    clean: Tensor
    up: Tensor
    down: Tensor

    @property
    def rise(self) -> Tensor:
        """½(L₊ + L₋) − L₀, (draws, n): its mean is S(σ); the first-order term cancels exactly."""
        return (self.up + self.down) / 2 - self.clean

    def and_more(self, other: Sides) -> Sides:
        """With further draws of the same examples."""
        return Sides(self.clean, torch.cat([self.up, other.up]), torch.cat([self.down, other.down]))

    @property
    def one_sided(self) -> Tensor:
        """L₊ − L₀, (draws, n): the same mean to second order, and the first-order term in its variance."""
        return self.up - self.clean


@dataclass(frozen=True)
class Race:
    """Some of the groups, of which the `keep` most sensitive ones are wanted: one that surely is none of them is drawn
    no further. After 2, 4, 8 … draws it is compared with the least of those leading, on common draws and examples."""

    groups: Sequence[str]
    keep: int

    def over(self, rises: dict[str, Tensor]) -> set[str]:
        """Those whose rises, (draws, n), lie below by more than chance gives once in a hundred times."""
        means = {group: rises[group].mean().item() for group in self.groups}
        leading = sorted(means, key=lambda group: -means[group])[: self.keep]
        least = rises[leading[-1]]
        return {g for g in self.groups if g not in leading and _above(least[: len(rises[g])] - rises[g])}


def _above(difference: Tensor) -> bool:
    """Whether the mean of (draws, n) differences lies above 0, where both are drawn."""
    draws, n = difference.shape
    error = difference.mean(1).var() / draws + difference.mean(0).var() / n
    return bool(difference.mean() > SURE * error.sqrt())


@torch.inference_mode()
def sensitivity(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batches: Sequence[Any],
    groups: dict[str, dict[str, nn.Parameter]],
    *,
    sigma: float,
    draws: int,
    seed: int,
    race: Race | None = None,
    progress: Callable[[list[tuple[int, str]]], Iterable[tuple[int, str]]] = iter,
) -> dict[str, Sides]:
    """L(θ), L(θ + σ s∘z) and L(θ − σ s∘z) of every example, z non-zero in one group of `weight_groups(model)`.

    `loss_fn(model, batch)` gives per-example losses, (n_batch,); the model is in eval mode. All batches and groups
    share the seeds of the draws; in a `race` some have fewer. `progress` goes over (batch, group). Layers below a
    group run once a batch, and their states are kept for that batch alone: of L decoder layers and a head of share h
    of the time F of a forward, a draw takes ((1−h)(L+1) + 2Lh)·F. Weights end bitwise as they began. Of several ranks
    (`torch.distributed`) each takes a part of the groups, and all get all losses. Raises `FloatingPointError` on a
    loss that is not finite.
    """
    states = LayerStates(model)
    depths = {group: len(layers_below(model, tensors)) for group, tensors in groups.items()}
    found: dict[str, Sides] = {}
    over: set[str] = set()
    rank, size = ranks()
    for rung in _rungs(draws, race):
        clean: list[Tensor] = []
        left = [group for group in groups if group not in over]
        pairs: dict[str, list[Tensor]] = {group: [] for group in left[rank::size]}
        for place, group in progress([(place, group) for place in range(len(batches)) for group in pairs]):
            losses = partial(_losses, model, loss_fn, batches[place])
            if place == len(clean):
                clean.append(_finite(states.record(losses)[None], [f"without noise, batch {place}"])[0])
            handed = partial(states.run, depths[group], losses)
            pairs[group].append(_pairs(handed, Masters(groups[group], seed=seed), sigma, rung, group))
        mine = {group: Sides(torch.cat(clean), *torch.cat(made, dim=2)) for group, made in pairs.items()}
        for group, made in zip(left, shared_out(left, mine.__getitem__), strict=True):
            found[group] = found[group].and_more(made) if group in found else made
        if race:
            over |= race.over({group: found[group].rise for group in race.groups})
    return found


def _rungs(draws: int, race: Race | None) -> list[range]:
    """Draws between two comparisons."""
    if race is None:
        return [range(draws)]
    ends = [*takewhile(lambda end: end < draws, (2**k for k in count(1))), draws]
    return [range(first, end) for first, end in pairwise([0, *ends])]


def _losses(model: nn.Module, loss_fn: Callable[[nn.Module, Any], Tensor], batch: Any) -> Tensor:
    return loss_fn(model, batch).float()


def _pairs(losses: Callable[[], Tensor], masters: Masters, sigma: float, draws: range, group: str) -> Tensor:
    """(2, draws, n_batch): L₊ and L₋."""
    found, places = [], []
    try:
        for sign in (+1, -1):
            for draw in draws:
                masters.write(sign * sigma, step=draw, query=0)
                found.append(losses())
                places.append(f"with noise of {sigma} in {group}, draw {draw}")
    finally:
        masters.restore()
    return _finite(torch.stack(found), places).unflatten(0, (2, len(draws)))


def _finite(losses: Tensor, places: list[str]) -> Tensor:
    """(evaluations, n) losses on the CPU, where they are checked: the host waits for all of them once."""
    losses = losses.cpu()
    for row, place in zip(losses, places, strict=True):
        if not row.isfinite().all():
            raise FloatingPointError(f"the loss is not finite {place}")
    return losses


def online_sensitivity(rises: Tensor, masks: Tensor) -> Tensor:
    """How much each group adds to the rise ½(L₊ + L₋) − L₀ when it is perturbed: float64, shape (L,).

    rises: (m,), one a query; masks: (m, L), bool, the groups that were in. Least squares with an intercept. The
    second-order terms between layers have mean zero over the noise, so they average out as m grows; a group that
    was always in, or never, is not identified and gets the solution of least norm. Bootstrap intervals by
    resampling the rows. Raises `ValueError` unless m > L.
    """
    m, groups = masks.shape
    if m <= groups:
        raise ValueError(f"{m} evaluations cannot tell {groups} groups apart; more than {groups} are needed")
    design = torch.cat([masks.double(), torch.ones(m, 1, dtype=torch.float64, device=masks.device)], dim=1).cpu()
    solved = torch.linalg.lstsq(design, rises.double().cpu()[:, None], driver="gelsd").solution  # of any rank
    return solved[:groups, 0]
