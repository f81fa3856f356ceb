"""First order under weight noise, followed as far as prompts that it was not trained on say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from holdfast.methods.first_order import Smoothed
from holdfast.methods.method import METHODS
from holdfast.settings.options import AtLeastZero, Count, Positive, Share, Some

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.methods.batches import Batch
    from holdfast.methods.descent import Descent
    from holdfast.methods.task import Outcome, Task
    from holdfast.zo import Deployed


@METHODS.register("line_search")
class LineSearch(Smoothed):
    """Descends the smoothed loss on a part of the examples. The result is θ + a·(θ_descended − θ), where a is 0 or one
    of `strengths`: the one of the least loss on the other examples, under noise of the same size that no step met.

    Harmful and benign examples count alike. A strength that raises the loss of the benign ones under noise, or without
    noise by more than `benign_rise`, is not taken: refusals are not to be bought with answers. Raises `UserError`
    where a label has fewer than two examples.
    """

    strengths: Some[Positive] = Field(description="shares of the descent's way that are tried, beside none of it")
    set_aside: Share = Field(description="of the training prompts of each label, to choose the strength by")
    draws: Count = Field(description="pairs of noise, or roundings, under which each strength is tried")
    benign_rise: AtLeastZero = Field(description="of the undisturbed loss of benign prompts, the most that is taken")

    moved = 5  # also the weights before

    def refine(self, task: Task) -> Outcome:
        from holdfast.methods.descent import Descent

        held = task.batches.set_aside(self.set_aside, task.batch_size)
        descent = Descent(task, self.lr, self.deployment(task))
        before = [value.detach().clone() for value in descent.moved]
        done = self.descended(descent)
        after = [value.detach().clone() for value in descent.moved]
        return self.searched(task, done, held, descent.deployed, partial(_place, descent, before, after))

    def searched(
        self, task: Task, done: Outcome, held: list[Batch], deployed: Deployed, place: Callable[[float], None]
    ) -> Outcome:
        """`place` the model at each strength, and leave it at the best one."""
        from holdfast.methods.task import Outcome

        losses = {}
        for strength in (0.0, *self.strengths):
            place(strength)
            losses[strength] = self._losses(task, deployed, held, first=len(done.losses))
        best = chosen(losses, self.benign_rise)
        place(best)
        told = {f"{label} at {a:g}": loss for a, pair in losses.items() for label, loss in pair.items()}
        tried = len(losses) * (len(self.signs) * self.draws + 1) * len(held)
        return Outcome(done.losses, done.forwards + tried, {"strength": best, "set-aside loss": told})

    @property
    def signs(self) -> tuple[int, ...]:
        """Of a draw; rounding has none."""
        return (1,) if self.rounding else (1, -1)

    def _losses(self, task: Task, deployed: Deployed, held: list[Batch], first: int) -> dict[str, float]:
        """Mean set-aside loss of each label, undisturbed and under the draws from `first` on; weights come back."""
        found = {f"clean {label}": loss for label, loss in _mean(task, held).items()}
        noisy = []
        for step in range(first, first + self.draws):
            for sign in self.signs:
                deployed.write(0.0, step=step, query=0, sign=sign)
                noisy.append(_mean(task, held))
        deployed.restore()
        return found | {label: sum(one[label] for one in noisy) / len(noisy) for label in noisy[0]}


def chosen(losses: dict[float, dict[str, float]], rise: float) -> float:
    """The strength of the least mean loss under noise among those that raise the benign loss there by nothing, and the
    undisturbed one by no more than `rise`."""
    start = losses[0.0]
    kept = {
        a: one
        for a, one in losses.items()
        if one["benign"] <= start["benign"] and one["clean benign"] <= start["clean benign"] + rise
    }
    return min(kept, key=lambda a: kept[a]["harmful"] + kept[a]["benign"])


def _mean(task: Task, held: list[Batch]) -> dict[str, float]:
    """Of each label, at the weights as they are."""
    import torch

    found: dict[str, list[Tensor]] = {"harmful": [], "benign": []}

    def sort(part: Batch) -> None:
        losses = task.loss(task.model, part)
        for label, sign in (("harmful", 1), ("benign", -1)):
            found[label].append(losses[part.sign == sign])

    with torch.inference_mode():
        for batch in held:
            task.parts.each(batch, sort)
    return {label: torch.cat(parts).mean().item() for label, parts in found.items()}


def _place(descent: Descent, before: list[Tensor], after: list[Tensor], strength: float) -> None:
    """Masters and weights := before + strength · (after − before)."""
    import torch

    with torch.no_grad():
        for master, old, new in zip(descent.moved, before, after, strict=True):
            master.grad = None
            master.copy_(torch.lerp(old, new, strength))
    descent.masters.restore()
