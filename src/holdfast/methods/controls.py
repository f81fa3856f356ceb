"""Controls: a gain counts for zeroth-order refinement only if it is larger than theirs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le
from pydantic import Field

from holdfast.errors import UserError
from holdfast.methods.method import METHODS, Method
from holdfast.settings.options import Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.methods.task import Outcome, Task


@METHODS.register("sign_shuffled")
class SignShuffled(Method):
    """The walk of the refinement `of`, its noise and its coefficients, every sign drawn again by a fair coin. It moves
    the weights as far, and the loss does not decide where."""

    of: str = Field(description="the method whose walk is repeated")

    moved = 1

    def refine(self, task: Task) -> Outcome:
        from holdfast.methods.task import Outcome
        from holdfast.zo import sign_shuffled

        assert task.source is not None
        walk = partial(sign_shuffled, task.model, task.source, seed=task.seed, trajectory=task.trajectory)
        return Outcome([], forwards=2 * task.logged(walk))


@METHODS.register("extrapolate")
class Extrapolate(Method):
    """θ + alpha · (θ − θ_base), no loss asked: plain extrapolation along the alignment direction, all parameters, in
    float32 and rounded once. Beside the model it takes the one before alignment."""

    alpha: Positive = Field(description="how far, as a share of what alignment did")

    def refine(self, task: Task) -> Outcome:
        import torch

        from holdfast.methods.task import Outcome

        before = dict(task.origin().named_parameters())
        with torch.no_grad():
            for name, parameter in task.model.named_parameters():
                after = parameter.float()
                parameter.copy_(after + self.alpha * (after - before[name].to(after)))
        return Outcome([], forwards=0)


@METHODS.register("threshold_shift")
class ThresholdShift(Method):
    """Only the refusal bias moves: the head's row of the refusal's first token is shifted along the mean final state
    of benign prompts, until a share `over_refusal` of them has a refusal margin above 0. A head that is tied to the
    embeddings is untied first, so that these stay.

    Of the clean model the margins keep their order but for the states' deviation from the mean, so that at matched
    over-refusal next to nothing changes. Under noise the states turn away from that mean, each to its own degree.
    """

    over_refusal: Annotated[float, Gt(0), Le(0.5)] = Field(
        description="the share of benign training prompts that is to be refused"
    )

    def refine(self, task: Task) -> Outcome:
        import torch

        with torch.no_grad():
            return self._shifted(task)

    def _shifted(self, task: Task) -> Outcome:
        import torch

        from holdfast.methods.task import Outcome

        batches, head = task.batches, _own_head(task.model)
        refusal, compliance = batches.openings[0][0], batches.openings[batches.refusals][0]
        if refusal == compliance:
            raise UserError("threshold_shift: the openings of refusal and compliance begin with the same token")
        prompts = [e.prompt for e in batches.examples["benign"]]
        states, margins = [], []
        size = task.batch_size
        for start in range(0, len(prompts), size):
            found = _final(task, prompts[start : start + size]).to(head.weight.device)
            states.append(found)
            margins.append(found @ (head.weight[refusal] - head.weight[compliance]).float())
        state, margin = torch.cat(states), torch.cat(margins)  # (n, width), (n,)
        mean = state.mean(0)
        push = state @ mean / mean.square().sum()  # (n,): what a shift of 1 adds to each margin, 1 on average
        shift = torch.quantile(-margin / push.clamp(min=0.1), self.over_refusal)
        head.weight[refusal] += (shift * mean / mean.square().sum()).to(head.weight.dtype)
        return Outcome([], forwards=len(states))


def _final(task: Task, prompts: list[list[int]]) -> Tensor:
    """(n, width) states from which each prompt's first answer token is read."""
    from holdfast.models.packing import packed, states

    packing = packed([(prompt, ()) for prompt in prompts], task.model.device)
    return states(task.model, packing)[packing.lengths.cumsum(0) - 1].float()


def _own_head(model: Any) -> nn.Linear:
    """The head, with weights of its own."""
    from torch import nn

    head: nn.Linear = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False  # saved, and loaded, as two
    return head
