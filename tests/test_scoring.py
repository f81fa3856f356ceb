"""Scores by teacher forcing against the plain way of computing them."""

from __future__ import annotations

import pytest
import torch
from conftest import ARCHITECTURES, random_model

from holdfast.datasets.tokens import prompt_ids, response_ids
from holdfast.errors import UserError
from holdfast.models.likelihood import (
    mean_nll,
    refusal_margin,
    response_logprob,
    sequences,
    token_logprobs,
)

PROMPTS = ["What is a person?", "What does kill mean?", "What is a virus?"]


def logprob(model, prompt, response):
    """log p(response | prompt), one token and one forward at a time."""
    total, ids = 0.0, list(prompt)
    with torch.inference_mode():
        for token in response:
            total += model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
            ids.append(token)
    return total


def encoded(tokenizer):
    return [prompt_ids(tokenizer, p) for p in PROMPTS]


def test_response_logprob(llama, tokenizer):
    response = response_ids(tokenizer, "A person is something to keep safe.", end=True)
    batch = sequences([(p, response) for p in encoded(tokenizer)], tokenizer.pad_token_id, llama.device)
    with torch.inference_mode():
        found = response_logprob(llama, batch)
    assert found.tolist() == pytest.approx([logprob(llama, p, response) for p in encoded(tokenizer)], rel=1e-4)
    assert mean_nll(llama, batch).tolist() == pytest.approx((-found / len(response)).tolist(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gemma3_text"])
def test_refusal_margin(tokenizer, kind, batch_size):
    """With attention windows shorter than the prompts too: those caches forget."""
    model = random_model(tokenizer, kind)
    refusals = [response_ids(tokenizer, o, end=False) for o in ("I cannot help with that.", "I must decline.")]
    compliances = [response_ids(tokenizer, o, end=False) for o in ("Sure.", "Of")]
    prompts = encoded(tokenizer)
    expected = [
        torch.tensor([logprob(model, p, o) for o in refusals]).logsumexp(0).item()
        - torch.tensor([logprob(model, p, o) for o in compliances]).logsumexp(0).item()
        for p in prompts
    ]
    found = [
        m
        for start in range(0, 3, batch_size)
        for m in refusal_margin(
            model, prompts[start : start + batch_size], refusals, compliances, tokenizer.pad_token_id
        ).tolist()
    ]
    assert found == pytest.approx(expected, abs=1e-3)


def test_one_bos_and_the_template(tokenizer):
    ids = prompt_ids(tokenizer, "What is a person?")
    assert ids.count(tokenizer.bos_token_id) == 1
    turns = [{"role": "user", "content": "What is a person?"}, {"role": "assistant", "content": "A person."}]
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    assert whole == ids + response_ids(tokenizer, "A person.", end=True)


def test_a_tokenizer_without_template_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="chat template"):
        prompt_ids(tokenizer, "Hello")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_padding_needs_no_mask(tokenizer, kind, attention):
    """Log-probabilities of padded rows, longer than any window, are bitwise those with a mask and a cache."""
    model = random_model(tokenizer, kind)
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("has no such attention")
    model.set_attn_implementation(attention)
    g = torch.Generator().manual_seed(0)
    sizes = ((9, 5), (20, 9), (3, 3))
    rows = [tuple(torch.randint(5, 400, (n,), generator=g).tolist() for n in size) for size in sizes]
    batch = sequences(rows, tokenizer.pad_token_id, model.device)
    plain = model(input_ids=batch.ids, attention_mask=batch.attention).logits[:, batch.columns].float()
    targets = batch.ids[:, batch.columns + 1]
    expected = plain.gather(-1, targets[..., None])[..., 0] - plain.logsumexp(-1)
    assert torch.equal(token_logprobs(model, batch), expected * batch.response[:, batch.columns + 1])
