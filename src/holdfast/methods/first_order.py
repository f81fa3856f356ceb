"""Refinement by back-propagation with AdamW, at the forward budget of the zeroth-order methods.

One loop, `_descend`; methods differ in the gradient that they hand to the optimizer, and in what it costs.

The optimizer moves float32 masters, and the weights are these, rounded: in bfloat16 a step of 1e-5 is below half a
unit in the last place of most weights, which would stay where they are. Beside the model, every refined weight takes
16 bytes: its master, its gradient summed in float32, and AdamW's two moments; and for a moment, as a backward ends,
its gradient in its own type. SAM keeps a copy of the masters (4 bytes), `weight_averaging` their mean (4 bytes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods.losses import Batch
from holdfast.methods.task import Outcome, Task
from holdfast.zo.perturb import Masters

PASS = 3  # forward-equivalents: one forward, and a backward that counts as two


class Descent:
    """A task's refined weights, and their masters as the parameters of an optimizer."""

    def __init__(self, task: Task) -> None:
        self.masters = Masters(task.tensors(), seed=task.seed)
        self.task, self.weights = task, list(self.masters.tensors.values())
        self.moved = [nn.Parameter(value) for value in self.masters.values.values()]  # the same memory

    def gradient(self, batch: Batch, share: float = 1.0) -> Tensor:
        """Adds `share` of the gradient of the mean loss at the weights to that of the masters; the loss, on its
        device."""
        losses: list[Tensor] = []

        def add(part: Batch) -> None:
            loss = self.task.loss(self.task.model, part).sum() / len(batch)
            # Not `backward`: were memory to run out in it, some weights would have their gradient already.
            for master, gradient in zip(self.moved, torch.autograd.grad(share * loss, self.weights), strict=True):
                master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
            losses.append(loss.detach())

        self.task.parts.each(batch, add)
        return torch.stack(losses).sum()

    def noisy_gradient(self, batch: Batch, step: int, signs: tuple[int, ...]) -> Tensor:
        """The gradient's mean over weights displaced by ±σ s∘z, where they stay; the mean loss."""
        losses = []
        try:
            for sign in signs:
                self.masters.write(sign * self.task.method.sigma, step=step, query=0)
                losses.append(self.gradient(batch, 1 / len(signs)))
        except BaseException:
            self.masters.restore()
            raise
        return torch.stack(losses).mean()


Gradient = Callable[[Descent, int, Batch], Tensor]
"""(descent, step, batch) -> loss; leaves the gradient in the masters."""


def first_order(task: Task) -> Outcome:
    """The plain gradient of the loss."""
    return _descend(Descent(task), _plain, PASS)


def smoothed(task: Task) -> Outcome:
    """The gradient at weights with fresh noise of scale `sigma`: of the smoothed loss that zeroth order descends."""
    return _descend(Descent(task), lambda descent, step, batch: descent.noisy_gradient(batch, step, (1,)), PASS)


def noise_stability(task: Task) -> Outcome:
    """The mean gradient at weights plus and minus the same noise (NSO, Zhang et al., arXiv 2306.08553): it sees the
    loss's curvature without the noise of the first-order term."""
    return _descend(Descent(task), lambda descent, step, batch: descent.noisy_gradient(batch, step, (1, -1)), 2 * PASS)


def sam(task: Task) -> Outcome:
    """Sharpness-aware minimization (Foret et al., ICLR 2021): the gradient at the worst point within `rho`. In half
    precision that point is rounded, like all weights, and most of a small `rho` with it."""
    from pytorch_optimizer import SAM

    descent = Descent(task)
    settings = {"lr": task.settings.first_order_lr, "weight_decay": 0.0, "foreach": False}
    optimizer = SAM(descent.moved, torch.optim.AdamW, rho=task.method.rho, **settings)

    def update(step: int, batch: Batch) -> Tensor:
        optimizer.zero_grad()
        loss = descent.gradient(batch)

        def again() -> Tensor:
            optimizer.zero_grad()
            descent.masters.restore()  # which the optimizer has displaced
            return descent.gradient(batch)

        optimizer.step(again)
        descent.masters.restore()
        return loss

    return _run(descent, update, 2 * PASS)


def neftune(task: Task) -> Outcome:
    """Uniform noise on the embedded tokens, ±alpha / √(length · width) (NEFTune, Jain et al., ICLR 2024)."""
    embedding = task.model.get_input_embeddings()
    generator = torch.Generator().manual_seed(task.seed)

    def noisy(module: object, args: object, embedded: Tensor) -> Tensor:
        length, width = embedded.shape[-2:]
        noise = torch.rand(embedded.shape, generator=generator).to(embedded) * 2 - 1
        return embedded + noise * (task.method.alpha / math.sqrt(length * width))

    hook = embedding.register_forward_hook(noisy)
    try:
        return first_order(task)
    finally:
        hook.remove()


def weight_averaging(task: Task) -> Outcome:
    """Plain descent whose result is the mean of the second half of its iterates (SWA, Izmailov et al., UAI 2018), the
    masters' mean, rounded once."""
    from torch.optim.swa_utils import AveragedModel

    descent, steps = Descent(task), _steps(task, PASS)
    iterate = nn.ParameterList(descent.moved)
    averaged = AveragedModel(iterate)

    def collect(step: int) -> None:
        if 2 * step >= steps:
            averaged.update_parameters(iterate)

    outcome = _descend(descent, _plain, PASS, after=collect)
    with torch.no_grad():
        for master, mean in zip(descent.moved, averaged.module.parameters(), strict=True):
            master.copy_(mean)
    descent.masters.restore()
    return outcome


def _plain(descent: Descent, step: int, batch: Batch) -> Tensor:
    return descent.gradient(batch)


def _descend(
    descent: Descent, gradient: Gradient, cost: int, after: Callable[[int], None] = lambda step: None
) -> Outcome:
    # Tensor by tensor: the update of all at once would take its temporaries of all at once.
    settings = {"lr": descent.task.settings.first_order_lr, "weight_decay": 0.0, "foreach": False}
    optimizer = torch.optim.AdamW(descent.moved, **settings)

    def update(step: int, batch: Batch) -> Tensor:
        optimizer.zero_grad()
        loss = gradient(descent, step, batch)
        optimizer.step()
        descent.masters.restore()
        after(step)
        return loss

    return _run(descent, update, cost)


def _run(descent: Descent, update: Callable[[int, Batch], Tensor], cost: int) -> Outcome:
    task = descent.task
    losses, stream = [], task.stream()
    with _frozen_but(task.model, descent.weights):
        for step in task.progress(range(_steps(task, cost))):
            losses.append(update(step, next(stream)).item())  # where the host waits, once a step
            if not math.isfinite(losses[-1]):
                raise UserError(f"the loss is {losses[-1]} at step {step}; lower refine.first_order_lr")
            task.log({"loss": losses[-1]})
    return Outcome(losses, forwards=cost * len(losses))


def _steps(task: Task, cost: int) -> int:
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
