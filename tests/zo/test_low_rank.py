"""Adapters that move by forward passes: exactly anchor + BA, of the radius that is asked, replayed from the log."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trajectory import same
from torch import nn

from holdfast.zo import (
    Cosine,
    Deployment,
    LowRank,
    ZeroOrderRefiner,
    fingerprint,
    replay,
    sign_shuffled,
    weight_groups,
)

OPTIONS = {"mu": 0.1, "lr": 0.05, "queries": 3, "normalize": "rms", "seed": 3, "rank": 2, "layers": ["layer.1"]}


def refined(model, losses, batches, path, steps, finish=True, **changes):
    groups = weight_groups(model)
    under = Deployment({k: p for layer in ("layer.0", "layer.1") for k, p in groups[layer].items()}, 0.1)
    refiner = ZeroOrderRefiner(model, losses, trajectory=path, deployment=under, **OPTIONS | changes)
    for step in range(refiner.steps, steps):
        refiner.step(batches[step])
        assert refiner.drift() == 0
    if finish:
        refiner.finish()
    return refiner


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_moves_by_a_product_of_its_rank_and_replays(llama, token_losses, token_batches, dtype, tmp_path):
    base, path = copy.deepcopy(llama.to(dtype)), tmp_path / "log"
    parts = refined(llama, token_losses, token_batches(3), path, 3).masters.parts.tensors
    moved = {name for name, p in llama.named_parameters() if not torch.equal(p, base.get_parameter(name))}
    assert moved == set(weight_groups(llama)["layer.1"])
    for name in moved:
        product = parts[f"{name}.B"] @ parts[f"{name}.A"]
        expected = (base.get_parameter(name).float() + product).to(dtype)
        torch.testing.assert_close(llama.get_parameter(name), expected, atol=1e-6, rtol=1e-2)
    again = copy.deepcopy(base)
    assert replay(again, path) == 3
    assert fingerprint(again) == fingerprint(llama)


def test_a_resumed_run_ends_in_the_same_bytes(llama, token_losses, token_batches, tmp_path):
    whole, batches = copy.deepcopy(llama), token_batches(4)
    refined(whole, token_losses, batches, tmp_path / "whole", 4)
    refined(copy.deepcopy(llama), token_losses, batches, tmp_path / "cut", 2, finish=False)
    refined(llama, token_losses, batches, tmp_path / "cut", 4)
    assert same(llama, whole)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_its_walk_with_signs_by_a_coin_is_another_and_replays(llama, token_losses, token_batches, tmp_path):
    base = copy.deepcopy(llama)
    refined(llama, token_losses, token_batches(3), tmp_path / "log", 3)
    walked = copy.deepcopy(base)
    assert sign_shuffled(walked, tmp_path / "log", seed=1, trajectory=tmp_path / "walk") == 9
    assert fingerprint(walked) not in (fingerprint(llama), fingerprint(base))
    again = copy.deepcopy(base)
    replay(again, tmp_path / "walk")
    assert fingerprint(again) == fingerprint(walked)


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 96), st.integers(8, 96), st.integers(1, 8), st.floats(0.01, 0.3), st.floats(1e-3, 10))
def test_a_radius_is_that_of_the_matrix_and_restoring_is_bitwise(rows, columns, rank, radius, size):
    """At the start B is zero, and a displacement of it by μ is one of W by μ; that of A adds as little as μ²."""
    generator = torch.Generator().manual_seed(rows * columns)
    weight = nn.Parameter(size * torch.randn(rows, columns, generator=generator))
    before, squares = weight.detach().clone(), []
    adapters = LowRank({"w": weight}, rank=rank, seed=0)
    assert torch.equal(weight, before)
    for query in range(40):
        adapters.write(radius, step=0, query=query)
        squares.append((weight - before).detach().square().mean() / before.square().mean())
    measured = torch.stack(squares).mean().sqrt().item()
    assert measured == pytest.approx(radius * (1 + radius**2) ** 0.5, rel=0.2)
    adapters.restore()
    assert torch.equal(weight, before)
    assert adapters.drift() == 0


def test_it_descends_a_quadratic_in_the_matrix():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(24, 2, generator=generator) @ torch.randn(2, 16, generator=generator)
    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([nn.Linear(16, 24, bias=False)])
    model.get_input_embeddings = lambda: nn.Embedding(1, 1)
    weight = model.model.layers[0].weight
    start = weight.detach().clone()

    def loss(*_):
        return (weight - start - 0.2 * target).square().mean().reshape(1)

    began, rate = loss().item(), Cosine(0.15, 150)
    refiner = ZeroOrderRefiner(
        *(model, loss),
        tensors={"w": weight},
        mu=0.05,
        lr=rate,
        queries=32,
        normalize="rms",
        rank=2,
        seed=1,
    )
    for _ in range(150):
        refiner.step(None)
    assert loss().item() < 0.3 * began


def test_what_is_no_matrix_of_such_a_rank_is_refused(llama, token_losses):
    with pytest.raises(ValueError, match=r"norm.weight: takes no adapter of rank 1; its shape is \(64,\)"):
        LowRank({"norm.weight": llama.model.norm.weight}, rank=1, seed=0)
    with pytest.raises(ValueError, match=r"takes no adapter of rank 65"):
        ZeroOrderRefiner(llama, token_losses, **OPTIONS | {"rank": 65})
    with pytest.raises(ValueError, match="directions have no rank to give"):
        ZeroOrderRefiner(llama, token_losses, directions={}, mu=0.1, lr=0.1, rank=1)


def test_it_takes_the_bytes_that_it_states():
    for dtype, width in ((torch.bfloat16, 2), (torch.float32, 4)):
        adapters = LowRank({"w": nn.Parameter(torch.randn(64, 48).to(dtype))}, rank=3, seed=0)
        kept = [*adapters.anchors.values(), *adapters.parts.values.values(), *adapters.parts.tensors.values()]
        assert sum(t.nbytes for t in kept) == width * 64 * 48 + 8 * 3 * (64 + 48)
