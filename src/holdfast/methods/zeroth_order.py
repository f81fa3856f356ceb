"""Refinement by forward passes alone: on the selected layers (the paper's method), on all, or in a subspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from holdfast.errors import UserError
from holdfast.methods.task import Outcome, Task
from holdfast.zo import StepReport, SubspaceRefiner, ZeroOrderRefiner, alignment_directions


class Refiner(Protocol):
    """What both refiners of the engine are."""

    steps: int
    losses: list[float]

    def step(self, *batches: object) -> StepReport: ...

    def finish(self) -> None: ...


def zeroth_order(task: Task) -> Outcome:
    """Two-point steps on the matrices of the task's layers."""
    s = task.settings

    def begin() -> ZeroOrderRefiner:
        common = {key: s[key] for key in ("mu", "lr", "queries", "normalize", "noise")}
        return ZeroOrderRefiner(
            task.model,
            task.loss,
            layers=task.layers,
            seed=task.seed,
            trajectory=task.trajectory,
            context=_context(task),
            **common,
        )

    return _refine(task, begin)


def subspace(task: Task) -> Outcome:
    """One coefficient a matrix, along what alignment did to it, the loss taken under weight noise of scale `sigma`."""
    s = task.settings

    def begin() -> SubspaceRefiner:
        origin = task.origin()
        return SubspaceRefiner(
            task.model,
            task.loss,
            directions=alignment_directions(task.model, origin, list(task.tensors())),
            mu=s.mu,
            lr=s.lr,
            queries=s.queries,
            sigma=task.method.sigma,
            tie=task.method.tie,
            noise=s.noise,
            normalize=s.normalize,
            seed=task.seed,
            trajectory=task.trajectory,
            context=_context(task),
        )

    return _refine(task, begin)


def _refine(task: Task, begin: Callable[[], Refiner]) -> Outcome:
    refiner, stream = task.logged(begin), task.stream()
    steps = max(1, task.budget // (2 * task.settings.queries))
    for _ in range(refiner.steps):  # an interrupted run goes on with the batch at which it stopped
        next(stream)
    for loss in refiner.losses:  # what it logged may be gone, or is passed over
        task.log({"loss": loss})
    for _ in task.progress(range(refiner.steps, steps)):
        try:
            # A step that fails puts the weights back, so that it can begin anew under the same perturbations.
            report = task.parts.whole([next(stream)], refiner.step)
        except FloatingPointError as error:
            raise UserError(str(error)) from None
        first = report.projected_gradients[0]
        task.log({"loss": report.loss, "projected_gradient": first, "projected_gradient_rms": report.rms})
    refiner.finish()
    return Outcome(refiner.losses, forwards=2 * task.settings.queries * steps)


def _context(task: Task) -> dict[str, object]:
    """What a log depends on beside the refiner's own settings."""
    s = task.settings
    return {"loss": s.loss, "batch_size": s.batch_size, "budget": task.budget, "data": task.data}
