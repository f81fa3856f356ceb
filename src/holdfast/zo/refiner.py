"""Two-point zeroth-order refinement: descend L_μ(θ) = E L(θ + μ s∘z) by forward passes alone.

A step is two calls, which may also be made one by one: `estimate` evaluates both sides of every query and gives their
projected gradients, `apply` moves the weights by coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.zo.choice import chosen_tensors, moves_of
from holdfast.zo.deployment import Deployed, Deployment
from holdfast.zo.digest import fingerprint
from holdfast.zo.directions import Direction
from holdfast.zo.parallel import dealt_back, ranks, summed_over_ranks
from holdfast.zo.perturb import Moves, total
from holdfast.zo.prefix import PrefixReuse
from holdfast.zo.step_size import Curvature, rms, running_rms
from holdfast.zo.trajectory import Trajectory, logged_scales

Rate = float | Callable[[int], float]
"""A learning rate, or one for every step."""
Log = Callable[[list[float], float | None], None]
"""Called with the coefficients of every step that was applied, and the loss that was seen."""


@dataclass(frozen=True)
class Estimate:
    """What the evaluations of one step saw: the mean of L±, and of every query the projected gradient, ½(L₊ + L₋) − L₀
    where the clean loss was asked for, and the names of the groups that were perturbed."""

    loss: float
    projected_gradients: list[float]
    rises: list[float] = field(default_factory=list)
    masks: list[list[str]] = field(default_factory=list)

    @property
    def rms(self) -> float:
        """Of the projected gradients."""
        return rms(self.projected_gradients)


class ZeroOrderRefiner:
    """g_i = (L(θ+μ s∘z_i) − L(θ−μ s∘z_i)) / 2μ for `queries` draws, then θ ← θ − lr · mean_i g_i s∘z_i.

    `loss_fn(model, batch)` gives per-example losses of shape (n,), or one loss for the whole batch; L is their
    mean over all micro-batches and ranks. What moves is one of three: the matrices of `layers`, groups of
    `weight_groups(model)`; `tensors`, by the names that their noise has, such as gains or LoRA's matrices, of any
    architecture; or a coefficient along each of `directions`, which are Δ of a model's tensors by name, whole or in
    parts (see `alignment_directions`, `singular_directions`): c ← c − lr · mean_i g_i ε_i with signs ε, where θ_t =
    θ_t,start + Σ_k c_tk·Δ_tk and c is `start` at first; `tie` says which of these share a coefficient. With `rank`,
    low-rank adapters of the matrices move in place of all their weights (see `LowRank`). Both sides of a query are
    evaluated under the `deployment`, if there is one.

    `normalize="rms"` divides by the rms of the g_i of the step, so that the length of a step does not depend on the
    loss's scale; `running` by that of this and the earlier steps, so that a step that saw little slope goes less far.
    `lr` may be a function of the step, such as `Cosine`, whose `repr` goes into a log. The model is put in eval mode
    and stays there.

    `log` is called after every step. With `trajectory`, every step is also appended to that file as it is made; a file
    that is already there is replayed first, and `steps` says how many steps that were. It must be of the same base and
    settings, and of the same `context`: JSON values that say what else the run depends on (loss, data).

    It takes 4 bytes a refined weight beside the model (along directions: see `Span`). `prefix` says for how long
    hidden states below the first refined layer are reused: `off`, for the `step`, or for the `run`, which takes their
    memory and asks that batch objects come again unchanged.

    With `subset` below 1 every query perturbs and moves a random part of the layers only, each in with that
    probability (LeZO). `clean` evaluates L₀ too, once a step: estimates then tell the rises that `online_sensitivity`
    takes. Of several ranks (`torch.distributed`) each brings its `rows` of the global batch, or all rows and evaluates
    its part of the `queries`; then weights and trajectory have the bits of one process. Raises `ValueError` for a
    layer, tensor or direction that is none of the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Tensor],
        *,
        layers: Sequence[str] | None = None,
        tensors: Mapping[str, nn.Parameter] | None = None,
        directions: Mapping[str, Direction] | None = None,
        mu: float,
        lr: Rate,
        queries: int = 1,
        noise: str = "rademacher",
        normalize: str = "none",
        seed: int = 0,
        deployment: Deployment | None = None,
        tie: str = "tensor",
        start: float = 0.0,
        rank: int | None = None,
        log: Log | None = None,
        trajectory: Path | None = None,
        context: Mapping[str, Any] | None = None,
        prefix: str = "step",
        subset: float = 1.0,
        clean: bool = False,
        over_ranks: Literal["rows", "queries"] = "rows",
    ) -> None:
        base = fingerprint(model) if trajectory else ""
        chosen = chosen_tensors(model, layers, tensors, directions)
        scales = logged_scales(trajectory, chosen) if trajectory else None
        drawn = {"seed": seed, "noise": noise, "scales": scales, "subset": subset}
        self.masters = moves_of(chosen, directions, rank=rank, tie=tie, start=start, **drawn)
        deployment = deployment if deployment and deployment.happens else None
        self.moves: Moves | Deployed = Deployed(self.masters, deployment) if deployment else self.masters
        self.model, self.loss_fn = model.eval(), loss_fn
        self.prefix = PrefixReuse(model, chosen, "off" if deployment or directions is not None else prefix)
        self.mu, self.lr, self.queries, self.normalize, self.clean = mu, lr, queries, normalize, clean
        self.log, self.steps, self.over_ranks = log, 0, over_ranks
        self.losses: list[float] = []  # of every step, those of a resumed log included
        self.seen: list[float] = []  # the rms of its projected gradients, likewise, where later steps need it
        self.trajectory: Trajectory | None = None
        if trajectory:
            rate = repr(lr) if callable(lr) else lr
            settings = {"mu": mu, "lr": rate, "queries": queries, "normalize": normalize}
            own: dict[str, Any] = {"sigma": deployment.sigma} if deployment else {}
            own |= {"layers": list(layers or chosen)} if directions is None else {}
            self._resume(trajectory, base, settings | own | {"context": dict(context or {})})

    def _resume(self, path: Path, base: str, settings: dict[str, Any]) -> None:
        """Open the log, which names its settings, and repeat what it holds."""
        self.trajectory = Trajectory.open(path, base, self.masters, settings)
        self.steps, self.losses = self.trajectory.replay_into(self.masters), list(self.trajectory.losses)
        self.seen = list(self.trajectory.seen)

    def step(self, *batches: Any) -> Estimate:
        """One update on one batch, or on several micro-batches under the same perturbations.

        Raises `FloatingPointError` on a loss that is not finite; the weights are then what they were.
        """
        found = self._estimate(batches)  # leaves the last perturbation in place, for `apply` writes anew
        self.apply(self.coefficients(found), found.loss, found.rms if self.normalize == "running" else None)
        return found

    def estimate(self, *batches: Any) -> Estimate:
        """The projected gradients of the next step at the weights as they are, which stay so. Raises as `step`."""
        try:
            return self._estimate(batches)
        finally:
            self.moves.restore()

    def coefficients(self, found: Estimate) -> list[float]:
        """−lr · g_i / queries, divided by an rms of the g_i if `normalize` says so: what a step applies."""
        scale = found.rms if self.normalize == "rms" else 1.0
        if self.normalize == "running":
            scale = running_rms([*self.seen, found.rms])
        rate = self.lr(self.steps) if callable(self.lr) else self.lr
        return [-rate * g / (scale * self.queries) if scale > 0 else 0.0 for g in found.projected_gradients]

    def apply(self, coefficients: list[float], loss: float | None = None, seen: float | None = None) -> None:
        """θ ← θ + Σ_i coefficient_i · s∘z_i over the queries of this step, which then is over. `seen` is the rms of
        its projected gradients, where later steps are normalized by it."""
        self.moves.move(coefficients, step=self.steps)
        if self.trajectory:
            self.trajectory.append(coefficients, loss, seen)
        if self.log:
            self.log(coefficients, loss)
        self.steps += 1
        self.losses += [] if loss is None else [loss]
        self.seen += [] if seen is None else [seen]

    @torch.inference_mode()
    def curvature(self, *batches: Any) -> Curvature:
        """What the queries of the next step tell of slope and curvature at the weights as they are, which stay so, on
        each of these batches and under a draw of the deployment for each: three evaluations a query, L₀ under the same
        deployment as L₊ and L₋. Raises as `step`, and `ValueError` for a single batch, which shares nothing."""
        if len(batches) < 2:
            raise ValueError("give two batches at least: the slope is what they share")
        asked = [(query, side * self.mu) for query in range(self.queries) for side in (1, 0, -1)]
        slopes, curvatures = [], list[float]()
        try:
            for draw, batch in enumerate(batches):
                if isinstance(self.moves, Deployed):
                    self.moves.draw = draw
                losses = self._of(asked, (batch,))
                triples = [losses[at : at + 3] for at in range(0, len(losses), 3)]
                slopes.append([(up - down) / (2 * self.mu) for up, _, down in triples])
                curvatures += [(up + down - 2 * middle) / self.mu**2 for up, middle, down in triples]
        finally:
            if isinstance(self.moves, Deployed):
                self.moves.draw = 0
            self.moves.restore()
        return Curvature(slopes, curvatures, self.mu)

    @torch.inference_mode()
    def _estimate(self, batches: tuple[Any, ...]) -> Estimate:
        sides = [(query, sign * self.mu) for query in range(self.queries) for sign in (+1, -1)]
        found = self._of([*[None] * self.clean, *sides], batches)
        clean, losses = found[: self.clean], found[self.clean :]
        pairs = list(zip(losses[::2], losses[1::2], strict=True))
        return Estimate(
            loss=sum(losses) / len(losses),
            projected_gradients=[(up - down) / (2 * self.mu) for up, down in pairs],
            rises=[(up + down) / 2 - base for base in clean for up, down in pairs],
            masks=self.masters.draws.subsets(range(self.queries), step=self.steps),
        )

    def _of(self, asked: Sequence[tuple[int, float] | None], batches: tuple[Any, ...]) -> list[float]:
        """The loss at each of these sides of queries; the last one's perturbation is left in place."""
        rank, size = ranks() if self.over_ranks == "queries" else (0, 1)
        sums = torch.zeros(0, 2, dtype=torch.float64, device=next(self.model.parameters()).device)
        try:
            if mine := asked[rank::size]:
                sums = torch.stack([self._at(side, batches) for side in mine])
        except BaseException:
            self.moves.restore()
            raise
        finally:
            self.prefix.forget()
        totals = summed_over_ranks(sums) if self.over_ranks == "rows" else dealt_back(sums, len(asked))
        found = [loss / count for loss, count in totals.tolist()]  # the step's one wait
        if not all(map(math.isfinite, found)):
            self.moves.restore()
            raise FloatingPointError(f"the loss is not finite at step {self.steps}; lower mu or lr")
        return found

    def _at(self, side: tuple[int, float] | None, batches: tuple[Any, ...]) -> Tensor:
        """[sum, count] at one side of a query, or as the weights are."""
        if side:
            self.moves.write(side[1], step=self.steps, query=side[0])
        return self._sum(batches)

    def _sum(self, batches: tuple[Any, ...]) -> Tensor:
        """[sum, count] of the losses of all micro-batches."""
        return sum(total(self._losses(batch)) for batch in batches)  # type: ignore[return-value]  # not of none

    def _losses(self, batch: Any) -> Tensor:
        return self.prefix.run(batch, lambda: self.loss_fn(self.model, batch).float())

    def finish(self) -> None:
        """Seal the trajectory with a hash of the refined weights; a log without it ends early."""
        if self.trajectory:
            self.trajectory.seal(self.masters)

    def drift(self) -> int:
        """How many refined weights are not the rounded masters: 0 between steps."""
        return self.masters.drift()
