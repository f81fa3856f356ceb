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


@loss("margin", "openings")
def margin(model: Any, batch: Batch) -> Tensor:
    """softplus(∓ refusal margin), (n,): refusing harmful prompts and complying with benign ones lowers it."""
    from torch.nn.functional import softplus

    from holdfast.models.likelihood import logprobs

    scores = logprobs(model, batch.told)  # (n, openings)
    difference = scores[:, : batch.refusals].logsumexp(1) - scores[:, batch.refusals :].logsumexp(1)
    return softplus(-batch.sign * difference)


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
