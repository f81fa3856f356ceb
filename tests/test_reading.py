"""Prompts that are read once, against one forward a token over all that came before."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import ARCHITECTURES, point, random_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.models import reading
from holdfast.models.packing import packed, run
from holdfast.models.reading import Reader, Request
from holdfast.perturbations import Bench, perturbed
from holdfast.perturbations.sampler import Sampler
from holdfast.runtime.memory import Parts

RNG = random.Random(3)
BEGUN = [RNG.randrange(5, 300) for _ in range(9)]  # long enough to be shared


def prompts(begun=()):
    return [[*begun, *(RNG.randrange(5, 300) for _ in range(n))] for n in (7, 3, 12, 1, 5, 5, 9)]


def reader(model, rows=3, **more):
    return Reader(model, Parts("rows", rows), **{"most": 6, "stops": [17], **more})


@torch.inference_mode()
def plain(model, request, most, stops):
    """(log-probabilities of each branch's tokens, answer), by whole forwards."""

    def after(tokens):
        return model(input_ids=torch.tensor([tokens])).logits[0, -1].float()

    scores = []
    for branch in request.branches:
        so_far = [after([*request.prompt, *branch[:k]]).log_softmax(-1)[token] for k, token in enumerate(branch)]
        scores.append(torch.stack(so_far) if so_far else torch.zeros(0))
    answer: list[int] = []
    while len(answer) < most and not (answer and answer[-1] in stops):
        answer.append(int(after([*request.prompt, *answer]).argmax()))
    return scores, answer


@pytest.mark.parametrize("begun", [(), BEGUN], ids=["apart", "shared"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_replies_are_those_of_whole_forwards(tokenizer, kind, begun):
    """With attention windows shorter than the prompts, rows that end at different times, and fewer than there are
    prompts."""
    model = random_model(tokenizer, kind)
    requests = [
        Request(prompt, [[9, 8, 7], [6], [], [9, 8, 30, 31, 32]] if k % 3 else [], answered=k != 2)
        for k, prompt in enumerate(prompts(begun))
    ]
    common = plain(model, requests[0], 6, [17])[1][2]  # an end that some answers meet
    found = reader(model, stops=[common]).replies(requests)
    for request, reply in zip(requests, found, strict=True):
        scores, answer = plain(model, request, 6, [common])
        assert len(reply.branches) == len(scores)
        for mine, theirs in zip(reply.branches, scores, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4)
        assert reply.tokens == (answer if request.answered else [])
        assert reply.ended == (request.answered and answer[-1] == common)
    assert {len(reply.tokens) for reply in found if reply.ended} & {1, 2, 3}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3), st.booleans()), min_size=1), st.integers(1, 5))
def test_rows_and_order_change_nothing(llama, sizes, rows):
    requests = [
        Request([5 + (k * j) % 90 for j in range(1, n + 1)], [[k + 5, 9, 4]] * branches, answered)
        for k, (n, branches, answered) in enumerate(sizes, 2)
    ]
    one, many = (reader(llama, some).replies(requests) for some in (1, rows))
    other = reader(llama, rows).replies(requests[::-1])[::-1]
    for a, b, c in zip(one, many, other, strict=True):
        assert a.tokens == b.tokens == c.tokens
        assert a.ended == b.ended == c.ended
        for x, y, z in zip(a.branches, b.branches, c.branches, strict=True):
            assert torch.allclose(x, y, atol=1e-4)
            assert torch.allclose(x, z, atol=1e-4)


@pytest.mark.parametrize("begun", [(), BEGUN], ids=["apart", "shared"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_short_rows_do_not_attend_over_the_length_of_a_long_one(tokenizer, monkeypatch, kind, begun):
    work = []

    def noted(model, packing, kept):
        (n, t), longest = packing.size, int(packing.positions.max()) + 1
        apart = sum((rows.stop - rows.start) * queries * keys for rows, queries, keys in packing.parts)
        work.append((apart or n * t * longest) / (n * t * longest))
        return run(model, packing, kept)

    model = random_model(tokenizer, kind)
    requests = [
        Request([*begun, *(5 + (k * j) % 90 for j in range(1, n + 1))], [[9, 8, 7], [6]] if k % 3 else [], k != 4)
        for k, n in enumerate([2, 70, *[3, 5, 4, 2] * 5])
    ]
    one = reader(model, 1).replies(requests)
    monkeypatch.setattr(reading, "run", noted)
    many = reader(model, 22).replies(requests)
    assert max(work) < 0.5
    for a, b in zip(one, many, strict=True):
        assert (a.tokens, a.ended) == (b.tokens, b.ended)
        for x, y in zip(a.branches, b.branches, strict=True):
            assert torch.allclose(x, y, atol=1e-4)


def test_every_token_is_run_once(llama, monkeypatch):
    """What all prompts begin with once for all; of a branch and an answer all but the last."""
    tokens = []

    def counted(module, args, kwargs):
        tokens.append(kwargs["input_ids"].numel())

    handle = llama.model.register_forward_pre_hook(counted, with_kwargs=True)
    requests = [Request(prompt, [[9, 8, 7], [6]]) for prompt in prompts(BEGUN)]
    reader(llama, rows=20, stops=[]).replies(requests)
    handle.remove()
    read = sum(len(request.prompt) - len(BEGUN) + 2 for request in requests)
    assert tokens == [len(BEGUN), read, *[len(requests)] * 5]


def test_nobody_waits_for_room_that_is_there(llama, monkeypatch):
    """Where a reading takes but a few prompts, all that have room are read before the first token is decoded."""
    sizes = []

    def noted(model, packing, kept):
        sizes.append(packing.size)
        return run(model, packing, kept)

    monkeypatch.setattr(reading, "run", noted)
    monkeypatch.setattr(reading, "TOKENS", 10)
    requests = [Request(prompt) for prompt in prompts()]
    reader(llama, rows=7, stops=[]).replies(requests)
    assert [rows for rows, tokens in sizes if tokens == 1 and rows > 1] == [7] * 5
    assert sum(rows for rows, _ in sizes) == 7 + 5 * 7


def test_keys_are_given_back_at_once(llama):
    """Not when garbage is collected next: an evaluation has a store for each of hundreds of points."""
    import gc

    gc.collect()
    gc.disable()
    try:
        reader(llama).replies([Request(prompt, [[9, 8]]) for prompt in prompts(BEGUN)])
        alive = [one for one in gc.get_objects() if type(one) in (reading._Pool, reading._Begun)]
    finally:
        gc.enable()
    assert not alive


@pytest.mark.parametrize("tokens", ["prompt", "generated", "all"])
def test_noise_is_that_of_a_plain_forward(llama, tokenizer, tokens):
    prompt = prompts()[0]
    bench = Bench(7, tokenizer.pad_token_id)
    with perturbed(llama, point("activation_noise", 0.3, tokens=tokens), bench) as arm, torch.inference_mode():
        assert not arm.shared
        plainly = arm.model(input_ids=torch.tensor([prompt])).logits[0]
        packing = packed([(prompt, ())], llama.device)
        mine = run(arm.model, packing, torch.arange(len(prompt)))
        (reply,) = Reader(arm.model, Parts("rows"), shared=False).replies([Request(prompt, [[9, 8, 7]], False)])
    (clean,) = Reader(llama, Parts("rows")).replies([Request(prompt, [[9, 8, 7]], False)])
    assert torch.allclose(mine, plainly, atol=1e-4)
    same = torch.isclose(reply.branches[0], clean.branches[0], atol=1e-6)
    assert same.tolist() == {"generated": [True, False, False]}.get(tokens, [False] * 3)


def test_samples_do_not_depend_on_the_batch(llama):
    requests = [Request(prompt) for prompt in prompts()]

    def sampled(rows, seed=3, order=1):
        sampler = Sampler(1.5, 0.95, seed)
        found = reader(llama, rows, sampler=sampler).replies(requests[::order])[::order]
        return [reply.tokens for reply in found]

    assert sampled(1) == sampled(4) == sampled(7, order=-1)
    assert sampled(7) != sampled(7, seed=4)
    assert sampled(7) != [reply.tokens for reply in reader(llama, 7).replies(requests)]


def test_memory_that_runs_out_costs_nothing_but_time(llama, monkeypatch, capsys):
    """In a reading or between two tokens: what is not whole begins anew, with fewer rows."""
    requests = [Request(prompt, [[9, 8]]) for prompt in prompts()]
    whole, calls = reader(llama, 7).replies(requests), []

    def crowded(model, packing, kept):
        calls.append(packing.size)
        if packing.size[0] > 3 or len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(model, packing, kept)

    monkeypatch.setattr(reading, "run", crowded)
    found = reader(llama, 7).replies(requests)
    assert [reply.tokens for reply in found] == [reply.tokens for reply in whole]
    assert all(torch.allclose(a.branches[0], b.branches[0], atol=1e-4) for a, b in zip(found, whole, strict=True))
    assert "going on with 3 (rows)" in capsys.readouterr().err
    assert calls[-1][0] == 1


def test_the_models_own_attention_is_put_back(llama, monkeypatch):
    before = llama.config._attn_implementation
    reader(llama).replies([Request([5, 6, 7])])
    assert llama.config._attn_implementation == before

    def failing(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", failing)
    with pytest.raises(ZeroDivisionError):
        reader(llama).replies([Request([5, 6, 7])])
    assert llama.config._attn_implementation == before
