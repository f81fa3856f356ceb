"""Two-point zeroth-order refinement: descend L_μ(θ) = E L(θ + μ s∘z) by forward passes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.digest import fingerprint
from holdfast.zo.layers import weight_groups
from holdfast.zo.parallel import summed_over_ranks
from holdfast.zo.perturb import Masters, Perturbed, total
from holdfast.zo.prefix import PrefixReuse
from holdfast.zo.trajectory import Trajectory, logged_scales


@dataclass(frozen=True)
class StepReport:
    """What one step saw: the mean of L±, and of every query the projected gradient, ½(L₊ + L₋) − L₀ where the
    clean loss was asked for, and the names of the groups that were perturbed."""

    loss: float
    projected_gradients: list[float]
    rises: list[float] = field(default_factory=list)
    masks: list[list[str]] = field(default_factory=list)

    @property
    def rms(self) -> float:
        """Of the projected gradients."""
        return math.sqrt(sum(g * g for g in self.projected_gradients) / len(self.projected_gradients))


class TwoPointRefiner:
    """The steps that all refiners share; what is perturbed and moved is up to `masters`."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Tensor],
        masters: Perturbed,
        prefix: PrefixReuse,
        *,
        mu: float,
        lr: float,
        queries: int,
        normalize: str,
        clean: bool = False,
    ) -> None:
        self.model, self.loss_fn, self.masters, self.prefix = model.eval(), loss_fn, masters, prefix
        self.mu, self.lr, self.queries, self.normalize, self.clean = mu, lr, queries, normalize, clean
        self.steps = 0
        self.losses: list[float] = []  # of every step, those of a resumed log included
        self.trajectory: Trajectory | None = None

    def _resume(self, path: Path, base: str, settings: dict[str, Any], context: Mapping[str, Any] | None) -> None:
        """Open the log, which names its settings, and repeat what it holds."""
        shared = {"mu": self.mu, "lr": self.lr, "queries": self.queries, "normalize": self.normalize}
        self.trajectory = Trajectory.open(
            path, base, self.masters, shared | settings | {"context": dict(context or {})}
        )
        self.steps, self.losses = self.trajectory.replay_into(self.masters), list(self.trajectory.losses)

    @torch.inference_mode()
    def step(self, *batches: Any) -> StepReport:
        """One update on one batch, or on several micro-batches under the same perturbations.

        Raises `FloatingPointError` on a loss that is not finite; the weights are then what they were.
        """
        clean, losses = self._evaluated(batches)
        if not all(map(math.isfinite, [*clean, *losses])):
            self.masters.restore()
            raise FloatingPointError(f"the loss is not finite at step {self.steps}; lower mu or lr")
        pairs = list(zip(losses[::2], losses[1::2], strict=True))
        report = StepReport(
            loss=sum(losses) / len(losses),
            projected_gradients=[(up - down) / (2 * self.mu) for up, down in pairs],
            rises=[(up + down) / 2 - base for base in clean for up, down in pairs],
            masks=self.masters.subsets(range(self.queries), step=self.steps),
        )
        coefficients = self._coefficients(report)
        self.masters.move(coefficients, step=self.steps)
        if self.trajectory:
            self.trajectory.append(coefficients, report.loss)
        self.steps += 1
        self.losses.append(report.loss)
        return report

    def _evaluated(self, batches: tuple[Any, ...]) -> tuple[list[float], list[float]]:
        """L₀, where it is asked for, and L₊ and L₋ of every query; the last perturbation is left in place."""
        sums = []
        try:
            if self.clean:
                sums.append(self._sum(batches))
            for query in range(self.queries):
                for sign in (+1, -1):
                    self.masters.write(sign * self.mu, step=self.steps, query=query)
                    sums.append(self._sum(batches))
        except BaseException:
            self.masters.restore()
            raise
        finally:
            self.prefix.forget()
        found = [loss / count for loss, count in summed_over_ranks(torch.stack(sums)).tolist()]  # the step's one wait
        return found[: self.clean], found[self.clean :]

    def _sum(self, batches: tuple[Any, ...]) -> Tensor:
        """[sum, count] of the losses of all micro-batches."""
        return sum(total(self._losses(batch)) for batch in batches)  # type: ignore[return-value]  # not of none

    def _losses(self, batch: Any) -> Tensor:
        return self.prefix.run(batch, lambda: self.loss_fn(self.model, batch).float())

    def _coefficients(self, report: StepReport) -> list[float]:
        scale = report.rms if self.normalize == "rms" else 1.0
        return [-self.lr * g / (scale * self.queries) if scale > 0 else 0.0 for g in report.projected_gradients]

    def finish(self) -> None:
        """Seal the trajectory with a hash of the refined weights; a log without it ends early."""
        if self.trajectory:
            self.trajectory.seal(self.masters)

    def drift(self) -> int:
        """How many refined weights are not the rounded masters: 0 between steps."""
        return self.masters.drift()


class ZeroOrderRefiner(TwoPointRefiner):
    """g_i = (L(θ+μ s∘z_i) − L(θ−μ s∘z_i)) / 2μ for `queries` draws, then θ ← θ − lr · mean_i g_i s∘z_i.

    `loss_fn(model, batch)` gives per-example losses of shape (n,), or one loss for the whole batch; L is their
    mean over all micro-batches and ranks. `layers` names groups of `weight_groups(model)`. `normalize="rms"`
    divides by the rms of the g_i of the step, so that the length of a step does not depend on the loss's
    scale. The model is put in eval mode and stays there.

    With `trajectory`, every step is appended to that file as it is made; a file that is already there is
    replayed first, and `steps` says how many steps that were. It must be of the same base and settings, and of
    the same `context`: JSON values that say what else the run depends on (loss, data).

    It takes 4 bytes a refined weight beside the model. `prefix` says for how long hidden states below the first
    refined layer are reused: `off`, for the `step`, or for the `run`, which takes their memory and asks that batch
    objects come again unchanged.

    With `subset` below 1 every query perturbs and moves a random part of the layers only, each in with that
    probability (LeZO). `clean` evaluates L₀ too, once a step: reports then tell the rises that
    `online_sensitivity` takes.
    """

    masters: Masters

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Tensor],
        *,
        layers: list[str],
        mu: float,
        lr: float,
        queries: int = 1,
        noise: str = "rademacher",
        normalize: str = "none",
        seed: int = 0,
        trajectory: Path | None = None,
        context: Mapping[str, Any] | None = None,
        prefix: str = "step",
        subset: float = 1.0,
        clean: bool = False,
    ) -> None:
        groups = weight_groups(model)
        if unknown := set(layers) - set(groups):
            raise ValueError(f"layers={sorted(unknown)}: choose among {', '.join(groups)}")
        base = fingerprint(model) if trajectory else ""
        chosen = {k: p for layer in layers for k, p in groups[layer].items()}
        scales = logged_scales(trajectory, chosen) if trajectory else None
        masters = Masters(chosen, seed=seed, noise=noise, subset=subset, scales=scales)
        reuse = PrefixReuse(model, layers, prefix)
        super().__init__(
            model, loss_fn, masters, reuse, mu=mu, lr=lr, queries=queries, normalize=normalize, clean=clean
        )
        if trajectory:
            self._resume(trajectory, base, {"layers": layers}, context)
