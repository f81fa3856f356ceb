"""First order on low-rank adapters, merged at the end: for a card that first order on all weights does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from holdfast.errors import UserError
from holdfast.methods.line_search import LineSearch
from holdfast.methods.method import METHODS, PASS
from holdfast.settings.options import Count, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.methods.batches import Batch
    from holdfast.methods.task import Outcome, Task


@METHODS.register("lora_line_search")
class LowRankLineSearch(LineSearch):
    """A line search along what adapters learned: W + a·scale·BA (LoRA, Hu et al., ICLR 2022), the loss under noise on
    W, and gradients for A and B alone. Beside the model it takes the masters that noise is written from.

    The merge is checked: the mean loss on the prompts that were set aside, before and after it, is told.
    """

    rank: Count = Field(description="of an adapter")
    alpha: Positive = Field(description="the adapter's product is multiplied by alpha / rank")

    moved = 1

    def refine(self, task: Task) -> Outcome:
        import torch

        from holdfast.methods.descent import add_gradient, run
        from holdfast.methods.task import Outcome
        from holdfast.zo import Deployed, Masters

        held = task.batches.set_aside(self.set_aside, task.batch_size)
        masters = Masters(task.tensors(), seed=task.seed)
        deployed = Deployed(masters, self.deployment(task))
        adapters = Adapters(task.model, masters.tensors, self.rank, self.alpha / self.rank, task.seed)
        optimizer = torch.optim.AdamW(adapters.parameters, lr=self.lr, weight_decay=0.0)

        def update(step: int, batch: Batch) -> Tensor:
            deployed.write(0.0, step=step, query=0)
            loss = add_gradient(task, batch, adapters.parameters, adapters.parameters)
            optimizer.step()
            optimizer.zero_grad()
            return loss

        with adapters.attached():
            done = run(task, [], update, PASS)
            deployed.restore()
            found = self.searched(task, done, held, deployed, partial(setattr, adapters, "strength"))
            unmerged = _loss(task, held)
        adapters.merge(masters.values)
        masters.restore()
        merged = {"unmerged": unmerged, "merged": _loss(task, held)}
        return Outcome(found.losses, found.forwards + 2 * len(held), found.told | {"merge": merged})


class Adapters:
    """A and B of each linear layer whose weight is among `tensors`: its output is Wx + strength·scale·B(Ax).

    Both are float32. B begins at zero. Raises `UserError` for a matrix that is of no linear layer.
    """

    def __init__(
        self, model: nn.Module, tensors: Mapping[str, nn.Parameter], rank: int, scale: float, seed: int
    ) -> None:
        import torch
        from torch import nn

        linears = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if other := sorted(tensors.keys() - linears.keys()):
            raise UserError(f"{other[0]}: is of no linear layer, which an adapter needs; take a method without rank")
        self.linears, self.scale, self.strength = {name: linears[name] for name in tensors}, scale, 1.0
        generator = torch.Generator().manual_seed(seed)
        self.pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, weight in tensors.items():
            rows, columns = weight.shape
            down = torch.randn(rank, columns, generator=generator) / columns**0.5
            up = torch.zeros(rows, rank)
            self.pairs[name] = nn.Parameter(down.to(weight.device)), nn.Parameter(up.to(weight.device))

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [part for pair in self.pairs.values() for part in pair]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model with its adapters."""

        def add(name: str, module: Any, given: tuple[Tensor], out: Tensor) -> Tensor:
            down, up = self.pairs[name]
            return out + (self.strength * self.scale * (given[0].float() @ down.T @ up.T)).to(out.dtype)

        hooks = [linear.register_forward_hook(partial(add, name)) for name, linear in self.linears.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def merge(self, values: Mapping[str, Tensor]) -> None:
        """Add strength·scale·BA to each of the float32 values."""
        import torch

        with torch.no_grad():
            for name, (down, up) in self.pairs.items():
                values[name].addmm_(up, down, alpha=self.strength * self.scale)


def _loss(task: Task, held: list[Batch]) -> float:
    """The mean over the examples."""
    import torch

    losses: list[Tensor] = []
    with torch.inference_mode():
        for batch in held:
            task.parts.each(batch, lambda part: losses.append(task.loss(task.model, part)))
    return torch.cat(losses).mean().item()
