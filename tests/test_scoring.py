"""Scores by teacher forcing against the plain way of computing them."""

from __future__ import annotations

import pytest
import torch
from conftest import ARCHITECTURES, random_model

from holdfast.datasets.tokens import prompt_ids, response_ids
from holdfast.errors import UserError
from holdfast.models.likelihood import Told, logprobs, mean_nll, refusal_margins
from holdfast.models.reading import Reader
from holdfast.runtime.memory import Parts

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
    told = Told([(p, [response]) for p in encoded(tokenizer)], llama.device)
    with torch.inference_mode():
        found = logprobs(llama, told)[:, 0]
    assert found.tolist() == pytest.approx([logprob(llama, p, response) for p in encoded(tokenizer)], rel=1e-4)
    assert mean_nll(llama, told)[:, 0].tolist() == pytest.approx((-found / len(response)).tolist(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gemma3_text"])
def test_refusal_margin(tokenizer, kind, batch_size):
    """With attention windows shorter than the prompts too."""
    model = random_model(tokenizer, kind)
    refusals = [response_ids(tokenizer, o, end=False) for o in ("I cannot help with that.", "I must decline.")]
    compliances = [response_ids(tokenizer, o, end=False) for o in ("Sure.", "Of")]
    prompts = encoded(tokenizer)
    expected = [
        torch.tensor([logprob(model, p, o) for o in refusals]).logsumexp(0).item()
        - torch.tensor([logprob(model, p, o) for o in compliances]).logsumexp(0).item()
        for p in prompts
    ]
    reader = Reader(model, Parts("rows", batch_size))
    found = refusal_margins(reader, prompts, refusals, compliances).tolist()
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


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_gradients_are_those_of_padded_rows(tokenizer, kind):
    """Of texts that follow one prompt, against a row each with a mask; rows are longer than any window."""
    model = random_model(tokenizer, kind)
    g = torch.Generator().manual_seed(0)
    rows = [
        (
            torch.randint(5, 400, (n,), generator=g).tolist(),
            [torch.randint(5, 400, (k,), generator=g).tolist() for k in each],
        )
        for n, each in ((9, (5, 2)), (20, (1, 9)), (3, (3, 3)))
    ]
    found = logprobs(model, Told(rows, model.device))
    weights = [p for p in model.parameters() if p.requires_grad]
    mine = torch.autograd.grad(found.square().sum(), weights, allow_unused=True)
    pairs = [(prompt, text) for prompt, texts in rows for text in texts]
    width = max(len(prompt) + len(text) for prompt, text in pairs)
    ids = torch.tensor([p + t + [0] * (width - len(p) - len(t)) for p, t in pairs])
    mask = torch.tensor([[1] * (len(p) + len(t)) + [0] * (width - len(p) - len(t)) for p, t in pairs])
    scores = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    plain = torch.stack(
        [sum(scores[row, len(p) + k - 1, token] for k, token in enumerate(t)) for row, (p, t) in enumerate(pairs)]
    ).view(3, 2)
    assert torch.allclose(found, plain, atol=1e-4)
    for a, b in zip(mine, torch.autograd.grad(plain.square().sum(), weights, allow_unused=True), strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
