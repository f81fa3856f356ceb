"""Refinement by forward passes alone: on the selected layers (the paper's method), or on all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from holdfast.errors import UserError
from holdfast.methods.method import METHODS, Method, Noise, Normalize
from holdfast.settings.options import Count, Positive

if TYPE_CHECKING:
    from holdfast.methods.task import Outcome, Task


class TwoPoint(Method):
    """Two-point estimates along random directions."""

    shares = True

    mu: Positive = Field(description="smoothing radius")
    lr: Positive = Field(description="learning rate")
    queries: Count = Field(description="random directions of a step")
    noise: Noise = Field(description="how the directions are drawn")
    normalize: Normalize = Field(description="rms: divide by the rms of a step's projected gradients")
    schedule: Literal["constant", "cosine"] = Field(default="constant", description="of lr, over the steps")

    def rate(self, task: Task) -> Any:
        """The engine's learning rate."""
        from holdfast.zo import Cosine

        return Cosine(self.lr, self.count(task)) if self.schedule == "cosine" else self.lr

    def count(self, task: Task) -> int:
        """Steps that the budget allows."""
        return max(1, task.budget // (2 * self.queries))

    def steps(self, task: Task, **moved: Any) -> Outcome:
        """All steps of a refiner that moves what `moved` says, and that continues the log of an interrupted run."""
        from holdfast.methods.task import Outcome
        from holdfast.zo import ZeroOrderRefiner

        def begin() -> ZeroOrderRefiner:
            return ZeroOrderRefiner(
                task.model,
                task.loss,
                mu=self.mu,
                lr=self.rate(task),
                queries=self.queries,
                normalize=self.normalize,
                noise=self.noise,
                seed=task.seed,
                trajectory=task.trajectory,
                context=task.context,
                over_ranks="queries",
                **moved,
            )

        refiner, stream = task.logged(begin), task.stream()
        count = self.count(task)
        for _ in range(refiner.steps):  # an interrupted run goes on with the batch at which it stopped
            next(stream)
        for loss in refiner.losses:  # what it logged may be gone, or is passed over
            task.log({"loss": loss})
        for _ in task.progress(range(refiner.steps, count)):
            try:
                # A step that fails puts the weights back, so that it can begin anew under the same perturbations.
                report = task.parts.whole([next(stream)], refiner.step)
            except FloatingPointError as error:
                raise UserError(str(error)) from None
            first = report.projected_gradients[0]
            task.log({"loss": report.loss, "projected_gradient": first, "projected_gradient_rms": report.rms})
        refiner.finish()
        return Outcome(refiner.losses, forwards=2 * self.queries * count)


@METHODS.register("zeroth_order")
class ZerothOrder(TwoPoint):
    """Two-point steps on the matrices of the selected layers."""

    moved = 1

    def refine(self, task: Task) -> Outcome:
        return self.steps(task, layers=task.layers)
