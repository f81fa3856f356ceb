"""Refinement by forward passes alone: on the selected layers (the paper's method), or on all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from holdfast.errors import UserError
from holdfast.methods.method import METHODS, Deploys, Noise, Normalize
from holdfast.runtime import ranks
from holdfast.settings.options import Count, Positive

if TYPE_CHECKING:
    from holdfast.methods.task import Outcome, Task
    from holdfast.zo import ZeroOrderRefiner

MEASURED = 4  # batches by which slope and curvature are measured


class TwoPoint(Deploys):
    """Two-point estimates along random directions, both sides of one under the same deployment."""

    shares = True

    mu: Positive = Field(description="smoothing radius")
    lr: Positive | None = Field(description="learning rate; null: the best by slope and curvature, measured first")
    queries: Count = Field(description="random directions of a step")
    noise: Noise = Field(description="how the directions are drawn")
    normalize: Normalize = Field(
        description="rms: divide by the rms of a step's projected gradients; running: and of earlier steps'"
    )
    schedule: Literal["constant", "cosine"] = Field(default="constant", description="of lr, over the steps")

    @property
    def measuring(self) -> int:
        """Forwards that are spent before the first step."""
        return 3 * self.queries * MEASURED if self.lr is None else 0

    def count(self, task: Task) -> int:
        """Steps that the rest of the budget allows."""
        return max(1, (task.budget - self.measuring) // (2 * self.queries))

    def steps(self, task: Task, **moved: Any) -> Outcome:
        """All steps of a refiner that moves what `moved` says, and that continues the log of an interrupted run."""
        from holdfast.methods.task import Outcome
        from holdfast.zo import Cosine, ZeroOrderRefiner

        def begin(lr: float, **log: Any) -> ZeroOrderRefiner:
            return ZeroOrderRefiner(
                task.model,
                task.loss,
                mu=self.mu,
                lr=Cosine(lr, count) if self.schedule == "cosine" else lr,
                queries=self.queries,
                normalize=self.normalize,
                noise=self.noise,
                seed=task.seed,
                deployment=self.deployment(task),
                over_ranks="queries",
                **log,
                **moved,
            )

        count, told = self.count(task), dict[str, float]()
        if self.lr is None:
            told = self.measured(task, begin(1.0))
        lr = self.lr or told["lr"]
        refiner = task.logged(lambda: begin(lr, trajectory=task.trajectory, context=task.context))
        stream = task.stream()
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
        return Outcome(refiner.losses, self.measuring + 2 * self.queries * count, dict(told))

    def measured(self, task: Task, refiner: ZeroOrderRefiner) -> dict[str, float]:
        """The learning rate that slope and curvature allow, and what a step is to gain by it, printed. Raises
        `UserError` where batches share no slope: such steps would be noise."""
        stream = task.batches.stream(task.batch_size, task.seed + 1)
        seen = task.parts.whole([next(stream) for _ in range(MEASURED)], refiner.curvature)
        refiner.masters.leave()  # a start along directions had moved the weights
        said = (
            f"slope {seen.slope:.3g}, of which {MEASURED} batches share {seen.shared:.3g}, tr H {seen.trace:.3g} by "
            f"{self.queries} queries at mu={self.mu:g}, which raises the loss by {self.mu**2 * seen.trace / 2:.2g}"
        )
        if seen.shared == 0:
            raise UserError(
                f"method.lr=null: no slope is seen above its noise ({said}); give more queries, larger batches, fewer "
                "coordinates, or method.lr"
            )
        gain = seen.gain(self.queries)
        # Steps that are not divided by the rms of their slopes go as far at a rate that is.
        lr = seen.rate(self.queries) / (1.0 if self.normalize != "none" else seen.slope)
        if ranks.first():
            print(f"refine   {said}: lr={lr:.3g}, which is to lower the loss by {gain:.2g} at the first step")
        told = {"slope": seen.slope, "shared_slope": seen.shared, "trace": seen.trace}
        return {"lr": lr, **told, "predicted_gain": gain}


@METHODS.register("zeroth_order")
class ZerothOrder(TwoPoint):
    """Two-point steps on the matrices of the selected layers, or on their gains or biases."""

    moved = 1

    def refine(self, task: Task) -> Outcome:
        if task.parameters == "matrices":
            return self.steps(task, layers=task.layers)
        return self.steps(task, tensors=task.tensors())


@METHODS.register("low_rank")
class LowRankTwoPoint(TwoPoint):
    """Two-point steps on low-rank adapters of the matrices of the selected layers, W + BA."""

    rank: Count = Field(description="of an adapter")

    moved = 1

    def refine(self, task: Task) -> Outcome:
        try:
            return self.steps(task, tensors=task.tensors(), rank=self.rank)
        except ValueError as error:
            raise UserError(f"method.rank={self.rank}: {error}") from None
