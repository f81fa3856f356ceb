"""Refinement in few coordinates along what alignment did to each matrix, by zeroth and by first order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from holdfast.errors import UserError
from holdfast.methods.method import METHODS, PASS, Deploys
from holdfast.methods.zeroth_order import TwoPoint
from holdfast.settings.options import AtLeastZero, Count, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.methods.batches import Batch
    from holdfast.methods.task import Outcome, Task
    from holdfast.zo import Span


class Along(Deploys):
    """Coefficients along Δ = aligned − base, or along its largest singular directions."""

    tie: Literal["tensor", "layer", "model"] = Field(description="which matrices share a coefficient")
    rank: Count | None = Field(
        default=None, description="singular directions of each matrix's change; null: the whole change is one"
    )
    start: AtLeastZero = Field(default=0.0, description="the coefficients before the first step: extrapolation")

    moved = 1

    def directions(self, task: Task) -> Mapping[str, Any]:
        from holdfast.zo import alignment_directions, singular_directions, write_directions

        origin, names = task.origin(), list(task.tensors())
        if self.rank is None:
            return alignment_directions(task.model, origin, names)
        try:
            found = singular_directions(task.model, origin, names, self.rank)
        except ValueError as error:
            raise UserError(f"method.rank={self.rank}: {error}") from None
        write_directions(task.trajectory, found)
        return found


@METHODS.register("subspace")
class Subspace(TwoPoint, Along):
    """Two-point estimates along random signs of the coefficients."""

    def refine(self, task: Task) -> Outcome:
        return self.steps(task, directions=self.directions(task), tie=self.tie, start=self.start)


@METHODS.register("subspace_gradient")
class SubspaceGradient(Along):
    """Adam on the same coefficients by back-propagation: how much these coordinates can hold."""

    lr: Positive = Field(description="learning rate of Adam")

    passes = PASS
    moved = 3  # Δ, anchors, and the gradients that Δ is multiplied with

    def refine(self, task: Task) -> Outcome:
        import torch

        from holdfast.methods.descent import run
        from holdfast.zo import Deployed, Span

        span = Span(task.tensors(), self.directions(task), tie=self.tie, start=self.start, seed=task.seed)
        deployed = Deployed(span, self.deployment(task))
        groups = list(dict.fromkeys(span.signs.values()))  # lines of one sign share a coefficient
        shared = torch.full((len(groups),), self.start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([shared], lr=self.lr)

        def update(step: int, batch: Batch) -> Tensor:
            deployed.write(0.0, step=step, query=0)
            loss, shared.grad = _gradient(task, span, batch, groups)
            optimizer.step()
            values = dict(zip(groups, shared.tolist(), strict=True))
            span.coefficients = {line: values[sign] for line, sign in span.signs.items()}
            return loss

        outcome = run(task, list(span.tensors.values()), update, PASS)
        deployed.restore()
        return outcome


def _gradient(task: Task, span: Span, batch: Batch, groups: list[int]) -> tuple[Tensor, Tensor]:
    """The mean loss, and its gradient by the shared coefficients, (groups,)."""
    import torch

    from holdfast.zo.directions import along

    weights, losses = list(span.tensors.values()), list[torch.Tensor]()
    found = torch.zeros(len(groups), dtype=torch.float64)
    place = {sign: k for k, sign in enumerate(groups)}

    def add(part: Batch) -> None:
        loss = task.loss(task.model, part).sum() / len(batch)
        gradients = torch.autograd.grad(loss, weights)
        for name, gradient in zip(span.tensors, gradients, strict=True):
            for k, slope in enumerate(along(span.directions[name], gradient)):
                found[place[span.signs[name, k]]] += slope
        losses.append(loss.detach())

    task.parts.each(batch, add)
    return torch.stack(losses).sum(), found
