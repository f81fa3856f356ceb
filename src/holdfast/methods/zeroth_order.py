"""Refinement by forward passes alone, on the selected layers (the paper's method) or on all."""

from __future__ import annotations

from holdfast.errors import UserError
from holdfast.methods.task import Outcome, Task
from holdfast.zo import ZeroOrderRefiner


def zeroth_order(task: Task) -> Outcome:
    s = task.settings
    refiner = ZeroOrderRefiner(
        task.model,
        task.loss,
        layers=task.layers,
        mu=s.mu,
        lr=s.lr,
        queries=s.queries,
        normalize=s.normalize,
        seed=task.seed,
    )
    losses = []
    for _ in task.progress(range(s.steps)):
        try:
            report = refiner.step(next(task.batches))
        except FloatingPointError as error:
            raise UserError(str(error)) from None
        losses.append(report.loss)
        gradients = report.projected_gradients
        rms = (sum(g * g for g in gradients) / len(gradients)) ** 0.5
        task.log({"loss": report.loss, "projected_gradient": gradients[0], "projected_gradient_rms": rms})
    return Outcome(losses, forwards=2 * s.queries * s.steps)
