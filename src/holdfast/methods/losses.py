"""Per-example alignment losses over harmful and benign prompts, shared by the probe and every method.

A loss is a function (model, batch) -> (n,). `reads` says which texts a batch holds after each example's prompt:

`response`: its response.
`pair`: its response and its rejected answer.
`openings`: every opening of a refusal, then every one of a compliance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from holdfast.methods.method import LOSSES

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.methods.batches import Batch

LossFn = Callable[[Any, "Batch"], "Tensor"]
Reads = Literal["response", "pair", "openings"]


def loss(name: str, read: Reads = "response") -> Callable[[LossFn], LossFn]:
    """Decorator: the loss of that name, and what it reads."""

    def add(function: LossFn) -> LossFn:
        function.reads = read  # type: ignore[attr-defined]
        return LOSSES.register(name)(function)

    return add


def reads(function: LossFn) -> Reads:
    """`response` unless the function says otherwise."""
    return getattr(function, "reads", "response")


@loss("nll")
def nll(model: Any, batch: Batch) -> Tensor:
    """Mean negative log-likelihood per token of the reference response, (n,)."""
    from holdfast.models.likelihood import logprobs

    return -logprobs(model, batch.told)[:, 0] / batch.told.lengths[:, 0]


@loss("cvar")
def cvar(model: Any, batch: Batch) -> Tensor:
    """The `nll` of the worst quarter of each label's examples, times four, and 0 of the others, (n,): its mean is the
    conditional value at risk at 3/4 (Rockafellar & Uryasev, 2000). Of a batch that memory cuts in parts, of each part.
    """
    import torch

    losses = nll(model, batch)
    found = torch.zeros_like(losses)
    for sign in (1, -1):
        mine = (batch.sign == sign).nonzero()[:, 0]
        if count := len(mine):
            worst = mine[losses[mine].topk(-(-count // 4)).indices]
            found[worst] = losses[worst] * (count / len(worst))
    return found


@loss("margin", "openings")
def margin(model: Any, batch: Batch) -> Tensor:
    """softplus(∓ refusal margin), (n,): refusing harmful prompts and complying with benign ones lowers it."""
    from torch.nn.functional import softplus

    return softplus(-_towards(model, batch))


@loss("hinge", "openings")
def hinge(model: Any, batch: Batch) -> Tensor:
    """max(0, 5 ∓ refusal margin), (n,): a slope that does not fade until an answer is e⁵ times as likely as the other
    kind."""
    return (5 - _towards(model, batch)).clamp(min=0)


def _towards(model: Any, batch: Batch) -> Tensor:
    """The margin of the wanted kind of opening against the other, in log-probability, (n,)."""
    from holdfast.models.likelihood import logprobs

    scores = logprobs(model, batch.told)  # (n, openings)
    return batch.sign * (scores[:, : batch.refusals].logsumexp(1) - scores[:, batch.refusals :].logsumexp(1))


@loss("dpo", "pair")
def dpo(model: Any, batch: Batch) -> Tensor:
    """−log σ(β (log-ratio of chosen and rejected − that of the reference)), (n,) (Rafailov et al., NeurIPS 2023)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(batch.beta * log_ratio(model, batch) - batch.reference)


def log_ratio(model: Any, batch: Batch) -> Tensor:
    """log p(response) − log p(rejected), (n,), of a batch of pairs."""
    from holdfast.models.likelihood import logprobs

    chosen, rejected = logprobs(model, batch.told).unbind(1)
    return chosen - rejected
