"""Log-probabilities of given texts by teacher forcing; everything is in float32 from the logits on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from holdfast.models.packing import Branches, packed, run
from holdfast.models.reading import Reader, Request
from holdfast.models.targets import Targets


class Told:
    """Prompts with the texts that follow each, as many after every prompt. A model reads them in one forward, each
    prompt once."""

    def __init__(self, rows: Sequence[tuple[list[int], Branches]], device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.each = len(rows[0][1]) if rows else 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> Told:
        return Told(self.rows[rows], self.device)

    @cached_property
    def lengths(self) -> Tensor:
        """(n, k) tokens of each text."""
        return torch.tensor([[len(one) for one in texts] for _, texts in self.rows], device=self.device)

    @cached_property
    def targets(self) -> Targets:
        return Targets.of(self.rows, 0, self.device)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Of every token, its text and where it stands there."""
        lengths = self.lengths.flatten().tolist()
        both = [(text, place) for text, length in enumerate(lengths) for place in range(length)]
        found = torch.tensor(both, dtype=torch.long, device=self.device).reshape(-1, 2)
        return found[:, 0], found[:, 1]


def token_logprobs(model: Any, told: Told) -> Tensor:
    """(n · k, longest) log-probability of each token of each text, 0 after its end."""
    # Not kept with what is told: its masks are as large as attention's scores.
    flat = told.targets.logprobs(run(model, packed(told.rows, told.device), told.targets.kept))
    longest = max((len(one) for _, texts in told.rows for one in texts), default=0)
    return flat.new_zeros(len(told) * told.each, longest).index_put(told.places, flat)


def logprobs(model: Any, told: Told) -> Tensor:
    """log p(text | prompt), (n, k)."""
    return token_logprobs(model, told).sum(1).view(len(told), told.each)


@torch.inference_mode()
def mean_nll(model: Any, told: Told) -> Tensor:
    """Mean negative log-likelihood per token of each text, (n, k)."""
    return -logprobs(model, told) / told.lengths.clamp(min=1)


def refusal_margins(
    reader: Reader, prompts: list[list[int]], refusals: list[list[int]], compliances: list[list[int]]
) -> Tensor:
    """log p(any refusal opening) − log p(any compliance opening) for each prompt, shape (n,)."""
    requests = [Request(prompt, [*refusals, *compliances], answered=False) for prompt in prompts]
    return torch.stack([margin(reply.branches, len(refusals)) for reply in reader.replies(requests)])


def margin(openings: list[Tensor], refusals: int) -> Tensor:
    """The same of one prompt, from the log-probabilities of each opening's tokens, those of refusals first."""
    scores = torch.stack([opening.sum() for opening in openings])
    return scores[:refusals].logsumexp(0) - scores[refusals:].logsumexp(0)
