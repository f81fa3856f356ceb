"""Descent by back-propagation with AdamW.

One loop, `descend`; methods differ in the gradient that they hand to the optimizer, and in what it costs.

The optimizer moves float32 masters, and the weights are these, rounded: in bfloat16 a step of 1e-5 is below half a
unit in the last place of most weights, which would stay where they are. Beside the model, every refined weight takes
16 bytes: its master, its gradient summed in float32, and AdamW's two moments; and for a moment, as a backward ends,
its gradient in its own type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods.batches import Batch
from holdfast.methods.task import Outcome, Task
from holdfast.zo import Deployed, Deployment, Masters


class Descent:
    """A task's refined weights, and their masters as the parameters of an optimizer."""

    def __init__(self, task: Task, lr: float, deployment: Deployment | None = None) -> None:
        self.masters = Masters(task.tensors(), seed=task.seed)
        self.deployed = Deployed(self.masters, deployment or Deployment({}))
        self.task, self.lr, self.weights = task, lr, list(self.masters.tensors.values())
        self.moved = [nn.Parameter(value) for value in self.masters.values.values()]  # the same memory

    def gradient(self, batch: Batch, share: float = 1.0) -> Tensor:
        """Add `share` times the gradient of the mean loss to the masters' gradients; gives the loss, on its device."""
        return add_gradient(self.task, batch, self.weights, self.moved, share)

    def deployed_gradient(self, batch: Batch, step: int, signs: tuple[int, ...]) -> Tensor:
        """The mean gradient at weights as they are deployed, under noise of each sign; of rounded ones as if rounding
        were the identity (straight-through, Bengio et al., arXiv 1308.3432). They stay so; gives the mean loss."""
        losses = []
        try:
            for sign in signs:
                self.deployed.write(0.0, step=step, query=0, sign=sign)
                losses.append(self.gradient(batch, 1 / len(signs)))
        except BaseException:
            self.deployed.restore()
            raise
        return torch.stack(losses).mean()


def add_gradient(
    task: Task, batch: Batch, weights: list[nn.Parameter], into: list[nn.Parameter], share: float = 1.0
) -> Tensor:
    """Add `share` times the gradient of the mean loss by `weights` to the gradients that `into` sums in float32; gives
    the loss, on its device."""
    losses: list[Tensor] = []

    def add(part: Batch) -> None:
        loss = task.loss(task.model, part).sum() / len(batch)
        # Not `backward`: were memory to run out in it, some weights would have their gradient already.
        for one, gradient in zip(into, torch.autograd.grad(share * loss, weights), strict=True):
            one.grad = gradient.float() if one.grad is None else one.grad.add_(gradient)
        losses.append(loss.detach())

    task.parts.each(batch, add)
    return torch.stack(losses).sum()


Gradient = Callable[[Descent, int, Batch], Tensor]
"""(descent, step, batch) -> loss; leaves the gradient in the masters."""


def plain(descent: Descent, step: int, batch: Batch) -> Tensor:
    """The gradient of the loss as it is."""
    return descent.gradient(batch)


def descend(
    descent: Descent, gradient: Gradient, cost: int, after: Callable[[int], None] = lambda step: None
) -> Outcome:
    # Tensor by tensor: the update of all at once would take its temporaries of all at once.
    optimizer = torch.optim.AdamW(descent.moved, lr=descent.lr, weight_decay=0.0, foreach=False)

    def update(step: int, batch: Batch) -> Tensor:
        optimizer.zero_grad()
        loss = gradient(descent, step, batch)
        optimizer.step()
        descent.deployed.restore()
        after(step)
        return loss

    return run(descent.task, descent.weights, update, cost)


def run(task: Task, weights: list[nn.Parameter], update: Callable[[int, Batch], Tensor], cost: int) -> Outcome:
    """`update` moves by a batch and gives its loss; only `weights` need gradients meanwhile."""
    losses, stream = [], task.stream()
    with _frozen_but(task.model, weights):
        for step in task.progress(range(steps_of(task, cost))):
            losses.append(update(step, next(stream)).item())  # where the host waits, once a step
            if not math.isfinite(losses[-1]):
                raise UserError(f"the loss is {losses[-1]} at step {step}; lower method.lr")
            task.log({"loss": losses[-1]})
    return Outcome(losses, forwards=cost * len(losses))


def steps_of(task: Task, cost: int) -> int:
    return max(1, task.budget // cost)


@contextmanager
def _frozen_but(model: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """Only these weights need gradients; afterwards those do that did before."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
