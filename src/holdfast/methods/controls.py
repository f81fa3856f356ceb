"""Controls: what a gain must exceed before it is put down to zeroth-order refinement."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods.task import Outcome, Task
from holdfast.models.likelihood import left_padded
from holdfast.zo import sign_shuffled


def shuffled(task: Task) -> Outcome:
    """The walk of the refinement `of`, its noise and its coefficients, every sign drawn again by a coin: what moving
    that far does without the loss having a say."""
    assert task.source is not None
    steps = task.logged(partial(sign_shuffled, task.model, task.source, seed=task.seed, trajectory=task.trajectory))
    return Outcome([], forwards=2 * task.settings.queries * steps)


@torch.no_grad()
def extrapolate(task: Task) -> Outcome:
    """θ + alpha · (θ − θ_base), no loss asked: plain extrapolation along the alignment direction, all parameters, in
    float32 and rounded once. Beside the model it takes the one before alignment."""
    before = dict(task.origin().named_parameters())
    for name, parameter in task.model.named_parameters():
        after = parameter.float()
        parameter.copy_(after + task.method.alpha * (after - before[name].to(after)))
    return Outcome([], forwards=0)


@torch.no_grad()
def threshold_shift(task: Task) -> Outcome:
    """Only the refusal bias moves: the head's row of the refusal's first token is shifted along the mean final state
    of benign prompts, until a share `over_refusal` of them has a refusal margin above 0. A head that is tied to the
    embeddings is untied first, so that these stay.

    Of the clean model the margins keep their order but for the states' deviation from the mean, so that at matched
    over-refusal next to nothing changes. Under noise the states turn away from that mean, each to its own degree.
    """
    batches, head = task.batches, _own_head(task.model)
    refusal, compliance = batches.openings[0][0], batches.openings[batches.refusals][0]
    if refusal == compliance:
        raise UserError("threshold_shift: the openings of refusal and compliance begin with the same token")
    prompts = [e.prompt for e in batches.examples["benign"]]
    states, margins = [], []
    size = task.settings.batch_size
    for start in range(0, len(prompts), size):
        found = _final(task, prompts[start : start + size]).to(head.weight.device)
        states.append(found)
        margins.append(found @ (head.weight[refusal] - head.weight[compliance]).float())
    state, margin = torch.cat(states), torch.cat(margins)  # (n, width), (n,)
    mean = state.mean(0)
    push = state @ mean / mean.square().sum()  # (n,): what a shift of 1 adds to each margin, 1 on average
    shift = torch.quantile(-margin / push.clamp(min=0.1), task.method.over_refusal)
    head.weight[refusal] += (shift * mean / mean.square().sum()).to(head.weight.dtype)
    return Outcome([], forwards=len(states))


def _final(task: Task, prompts: list[list[int]]) -> Tensor:
    """(n, width) states from which each prompt's first answer token is read."""
    ids, attention, positions = left_padded(prompts, task.batches.pad, task.model.device)
    out = task.model.model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)
    return out.last_hidden_state[:, -1].float()


def _own_head(model: Any) -> nn.Linear:
    """The head, with weights of its own."""
    head: nn.Linear = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False  # saved, and loaded, as two
    return head
