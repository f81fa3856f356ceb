"""Log-probabilities of given texts by teacher forcing; everything is in float32 from the logits on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.cache_utils import DynamicSlidingWindowLayer


@dataclass(frozen=True)
class Sequences:
    """Prompts with responses, right-padded: (n, t) ids, mask of the tokens, and mask of the response tokens;
    (c,) positions whose next token is a response token in any row, the only ones whose logits are needed."""

    ids: Tensor
    attention: Tensor
    response: Tensor
    columns: Tensor


def sequences(pairs: list[tuple[list[int], list[int]]], pad: int, device: torch.device) -> Sequences:
    """Stack (prompt ids, response ids) pairs."""
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    ids = torch.full((len(pairs), width), pad)
    attention, response_mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        attention[row, :end] = 1
        response_mask[row, len(prompt) : end] = True
    columns = response_mask[:, 1:].any(0).nonzero()[:, 0]
    return Sequences(ids.to(device), attention.to(device), response_mask.to(device), columns.to(device))


class Unkept(DynamicCache):
    """A cache that keeps nothing. Where none is given, transformers looks for packed sequences, and the host waits
    for the answer."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states


def token_logprobs(model: Any, batch: Sequences) -> Tensor:
    """(n, c) log-probability of each next token, 0 outside the response.

    No attention mask: nothing comes before the padding's end but what is causal anyway, and to read a mask the host
    would wait at every forward.
    """
    out = model(input_ids=batch.ids, logits_to_keep=batch.columns, past_key_values=Unkept(), use_cache=False)
    logits = out.logits.float()
    targets, mask = batch.ids[:, batch.columns + 1], batch.response[:, batch.columns + 1]
    chosen = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    return chosen * mask


def response_logprob(model: Any, batch: Sequences) -> Tensor:
    """log p(response | prompt), shape (n,)."""
    return token_logprobs(model, batch).sum(1)


@torch.inference_mode()
def mean_nll(model: Any, batch: Sequences) -> Tensor:
    """Mean negative log-likelihood per response token, shape (n,)."""
    return -token_logprobs(model, batch).sum(1) / batch.response[:, 1:].sum(1).clamp(min=1)


def greedy(
    model: Any,
    ids: Tensor,
    attention: Tensor,
    *,
    pad: int,
    stops: list[int],
    most: int,
    processors: Sequence[Any] = (),
) -> Tensor:
    """(n, at most `most`) new tokens, each the argmax of the logits as `processors` leave them; any of `stops` ends a
    row. Of the model's own generation settings nothing is inherited: `generate` would take them wherever ours say
    nothing, such as the repetition penalty that Qwen2.5-Instruct comes with."""
    settings = GenerationConfig(max_new_tokens=most, do_sample=False, pad_token_id=pad, eos_token_id=stops)
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        out = model.generate(
            input_ids=ids,
            attention_mask=attention,
            generation_config=settings,
            logits_processor=LogitsProcessorList(processors),
        )
    finally:
        model.generation_config = own
    return out[:, ids.shape[1] :]


def generated(
    model: Any, tokenizer: Any, prompts: list[list[int]], most: int, processors: Sequence[Any] = ()
) -> tuple[list[list[int]], list[bool]]:
    """The new tokens of each prompt as `greedy` gives them, and whether it ended by itself."""
    from holdfast.datasets.tokens import stops

    ends, pad = stops(tokenizer), tokenizer.pad_token_id
    ids, attention, _ = left_padded(prompts, pad, model.device)
    out = greedy(model, ids, attention, pad=pad, stops=ends, most=most, processors=processors).tolist()
    return out, [not set(ends).isdisjoint(row) for row in out]


def left_padded(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(n, t) ids, attention mask and position ids of prompts aligned at their ends."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, attention, (attention.cumsum(1) - 1).clamp(min=0)


@dataclass
class Started:
    """n prompts that a model has read: their cache, (n, t) attention, (n, 1) last positions, and the (n, vocabulary)
    logits of what comes next."""

    model: Any
    cache: Any
    attention: Tensor
    last: Tensor
    first: Tensor

    @classmethod
    def of(cls, model: Any, prompts: list[list[int]], pad: int) -> Started:
        ids, attention, positions = left_padded(prompts, pad, model.device)
        out = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True, logits_to_keep=1)
        for layer in out.past_key_values.layers:
            if isinstance(layer, DynamicSlidingWindowLayer):  # forgets what it would need to be cropped
                layer.activate_past_recording()
        return cls(model, out.past_key_values, attention, positions[:, -1:], out.logits[:, -1].float())

    def rows(self, places: list[int]) -> Started:
        """Some of the prompts, as often as they are named: what is said to one many times has it read once."""
        cache, at = copy.deepcopy(self.cache), torch.tensor(places, device=self.first.device)
        cache.batch_select_indices(at)
        return Started(self.model, cache, self.attention[at], self.last[at], self.first[at])

    def logits(self, tokens: Tensor) -> Tensor:
        """(n, k) tokens that follow -> (n, k, vocabulary) logits in whose place each of them stands."""
        first = self.first[:, None]
        if tokens.shape[1] == 1:
            return first
        fed = tokens[:, :-1]
        out = self.model(
            input_ids=fed,
            attention_mask=torch.cat([self.attention, torch.ones_like(fed)], dim=1),
            position_ids=self.last + torch.arange(1, tokens.shape[1], device=tokens.device),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache.crop(1 - tokens.shape[1])
        return torch.cat([first, out.logits.float()], dim=1)


@torch.inference_mode()
def refusal_margin(
    model: Any, prompts: list[list[int]], refusals: list[list[int]], compliances: list[list[int]], pad: int
) -> Tensor:
    """log p(any refusal opening) − log p(any compliance opening) for each prompt, shape (n,).

    The prompts run once; each opening continues from their cached keys and values.
    """
    started, scores = Started.of(model, prompts, pad), []
    for opening in refusals + compliances:
        tokens = torch.tensor([opening], device=model.device).expand(len(prompts), -1)  # (n, k)
        logprobs = started.logits(tokens).log_softmax(-1)
        scores.append(logprobs.gather(-1, tokens[..., None]).sum((1, 2)))
    stacked = torch.stack(scores)  # (openings, n)
    return stacked[: len(refusals)].logsumexp(0) - stacked[len(refusals) :].logsumexp(0)
