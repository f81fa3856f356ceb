"""The engine: noise that is a function of integers, exact restoration, an unbiased estimate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.zo import ZeroOrderRefiner, rademacher, sensitivity, weight_groups
from holdfast.zo.noise import philox
from holdfast.zo.perturb import Masters

CPU = torch.device("cpu")
WORDS = st.integers(0, 2**32 - 1)


class Quadratic(nn.Module):
    """½ Σ h_i (w_i − a_i)² with the names of a decoder; its loss is the same for every example."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.Linear(size, 1, bias=False) for _ in range(2))
        for layer in self.model.layers:
            layer.weight.data = torch.randn(1, size, generator=g)
        self.h = torch.rand(size, generator=g)

    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding(1, 1)

    def loss(self, *_: object) -> torch.Tensor:
        return sum((0.5 * self.h * layer.weight[0] ** 2).sum() for layer in self.model.layers).reshape(1)


def philox_by_hand(counter, key):
    """Philox-4x32-10 on Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS))
def test_philox_is_philox(counter, key):
    words = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert [w.item() for w in words] == philox_by_hand(counter, key)


def test_philox_known_answer():
    """The all-ones vector of Random123's known-answer file."""
    ones = (torch.tensor([0xFFFFFFFF]),) * 4
    words = philox(ones, (0xFFFFFFFF, 0xFFFFFFFF))
    assert [w.item() for w in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**40))
def test_noise_is_addressed_by_element(short, long, seed):
    same = {"seed": seed, "step": 3, "query": 1, "tensor": 2, "device": CPU}
    short, long = sorted((short, long))
    assert torch.equal(rademacher(short, **same), rademacher(long, **same)[:short])


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 1}, {"query": 1}, {"tensor": 1}])
def test_noise_streams_are_uncorrelated(change):
    start = {"seed": 0, "step": 0, "query": 0, "tensor": 0, "device": CPU}
    n = 40_000
    a, b = rademacher(n, **start), rademacher(n, **(start | change))
    assert set(a.unique().tolist()) == {-1.0, 1.0}
    assert abs(a.mean()) < 4 / n**0.5
    assert abs((a * b).mean()) < 4 / n**0.5


def test_global_generator_is_untouched(llama):
    before = torch.get_rng_state()
    masters = Masters(weight_groups(llama)["layer.0"], seed=5)
    masters.write(0.3, 0, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_drift(llama, dtype):
    """After 50 evaluations and no update the weights are bitwise what they were."""
    llama.to(dtype)
    before = {name: p.clone() for name, p in llama.named_parameters()}
    masters = Masters({k: p for group in weight_groups(llama).values() for k, p in group.items()}, seed=0)
    for step in range(25):
        for sign in (+1, -1):
            masters.write(sign * 0.3, step, 0)
    masters.restore()
    assert all(torch.equal(before[name], p) for name, p in llama.named_parameters())


def test_estimate_is_unbiased_on_a_quadratic():
    model = Quadratic()
    weight = model.model.layers[0].weight
    masters = Masters({"w": weight}, seed=0)
    scale, gradient, total, draws = masters.scales[0], model.h * weight[0], 0, 4000
    for draw in range(draws):
        sides = []
        for sign in (+1, -1):
            masters.write(sign * 0.1, draw, 0)
            sides.append(model.loss().item())
        ((_, z),) = masters.noise(draw, 0)
        total = total + (sides[0] - sides[1]) / 0.2 * z[0]
    masters.restore()
    estimate = total / draws / scale
    assert torch.nn.functional.cosine_similarity(estimate, gradient.detach(), dim=0) > 0.98
    assert (estimate - gradient.detach()).abs().max() < 6 * gradient.norm().item() / draws**0.5


@pytest.mark.parametrize("normalize", ["none", "rms"])
@pytest.mark.parametrize("queries", [1, 3])
def test_steps_match_a_reference_that_materialises_z(normalize, queries):
    """The refiner against fifteen plain lines."""
    model, mu, lr = Quadratic(), 0.2, 0.05
    refiner = ZeroOrderRefiner(
        model, lambda m, _: m.loss(), layers=["layer.0"], mu=mu, lr=lr, queries=queries, normalize=normalize, seed=9
    )
    plain = Quadratic()
    weight = plain.model.layers[0].weight
    scale = weight.square().mean().sqrt().item()
    for step in range(5):
        w, moves = weight.detach().clone(), []
        for query in range(queries):
            z = rademacher(w.numel(), seed=9, step=step, query=query, tensor=0, device=CPU).view_as(w)
            sides = []
            for sign in (+1, -1):
                weight.data = w + sign * mu * scale * z
                sides.append(plain.loss().item())
            moves.append(((sides[0] - sides[1]) / (2 * mu), z))
        rms = (sum(g * g for g, _ in moves) / queries) ** 0.5 if normalize == "rms" else 1.0
        weight.data = w - lr / queries / rms * scale * sum(g * z for g, z in moves)
        report = refiner.step(None)
        assert report.projected_gradients == pytest.approx([g for g, _ in moves], rel=1e-4)
        assert torch.allclose(model.model.layers[0].weight, weight, atol=1e-6)
    assert torch.equal(model.model.layers[1].weight, Quadratic().model.layers[1].weight)


def test_nan_loss_restores_and_says_where():
    model = Quadratic()
    before = model.model.layers[0].weight.clone()
    refiner = ZeroOrderRefiner(model, lambda m, _: m.loss() * float("nan"), layers=["layer.0"], mu=0.1, lr=0.1)
    with pytest.raises(FloatingPointError, match="step 0"):
        refiner.step(None)
    assert torch.equal(model.model.layers[0].weight, before)


def test_antithetic_sensitivity_is_exact_on_a_diagonal_quadratic():
    """With Rademacher noise and diagonal H, one draw gives ½ σ² s² tr H exactly."""
    model = Quadratic()
    found = sensitivity(model.loss, weight_groups(model), sigma=0.3, draws=2, seed=0)
    for layer, name in zip(model.model.layers, ("layer.0", "layer.1"), strict=True):
        expected = 0.5 * 0.3**2 * layer.weight.square().mean() * model.h.sum()
        assert found[name].flatten().tolist() == pytest.approx([expected.item()] * 2, rel=1e-3)


def test_groups_of_tied_and_untied_models(tokenizer):
    from conftest import random_llama

    assert list(weight_groups(random_llama(tokenizer))) == ["embeddings", "layer.0", "layer.1", "head"]
    assert list(weight_groups(random_llama(tokenizer, tied=True))) == ["embeddings", "layer.0", "layer.1"]
