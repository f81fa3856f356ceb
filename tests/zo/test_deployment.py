"""Losses under what weights meet later: one for both sides of a query, kept by no move; and the size of a step."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_refiner import DTYPES, Quadratic, everything
from test_trajectory import same

from holdfast.zo import Deployed, Deployment, Masters, ZeroOrderRefiner, replay, vector_groups, weight_groups
from holdfast.zo.step_size import Curvature, running_rms

OPTIONS = {"mu": 0.1, "lr": 0.05, "queries": 2, "normalize": "rms", "seed": 3}


def halves(weight, shift):
    """To multiples of a half, and what tells the shift."""
    return (weight.float() * 2).round() / 2 + shift / 1024


@pytest.mark.parametrize("rounding", [None, halves])
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_sides_meet_the_same_and_nothing_of_it_stays(llama, token_losses, token_batches, dtype, rounding):
    llama.to(dtype)
    before, matrices = copy.deepcopy(llama.state_dict()), everything(llama)
    mine = set(weight_groups(llama)["layer.1"])
    seen = []

    def noting(model, batch):
        seen.append({name: p.detach().float().clone() for name, p in matrices.items()})
        return token_losses(model, batch)

    under = Deployment(matrices, 0.2, rounding)
    refiner = ZeroOrderRefiner(llama, noting, layers=["layer.1"], deployment=under, **OPTIONS)
    refiner.step(token_batches(1)[0])
    ups, downs = seen[::2], seen[1::2]
    for name in matrices.keys() - mine:
        assert torch.equal(ups[0][name], downs[0][name])
        assert not torch.equal(ups[0][name], ups[1][name])
        assert not torch.equal(ups[0][name], before[name].float())
        assert torch.equal(llama.get_parameter(name), before[name])
    for name in mine:
        assert not torch.equal(ups[0][name], downs[0][name])
        assert (llama.get_parameter(name).float() - before[name].float()).abs().max() < 0.2
    assert refiner.drift() == 0


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_weights_come_back_bitwise_whatever_was_written(data):
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from(DTYPES))
    tensors = {f"w{k}": torch.nn.Parameter(torch.randn(3, 8, generator=g).to(dtype)) for k in range(3)}
    before = {name: p.detach().clone() for name, p in tensors.items()}
    rounding = data.draw(st.sampled_from([None, halves]))
    masters = Masters({"w0": tensors["w0"]}, seed=1)
    deployed = Deployed(masters, Deployment(tensors, data.draw(st.sampled_from([0.0, 0.1, 2.0])), rounding))
    for step in range(data.draw(st.integers(1, 4))):
        deployed.write(data.draw(st.floats(-1, 1, width=32)), step=step, query=step)
    deployed.restore()
    assert all(torch.equal(p, before[name]) for name, p in tensors.items())


def test_noise_of_a_deployment_is_none_of_those_that_weights_move_along(llama):
    (name, weight), *_ = everything(llama).items()
    before = weight.detach().clone()
    masters = Masters({name: weight}, seed=3)
    deployed = Deployed(masters, Deployment({name: weight}, 0.1))
    masters.write(0.1, step=2, query=1)
    moved = weight.detach() - before
    deployed.write(0.0, step=2, query=1)
    noise = weight.detach() - before
    assert torch.nn.functional.cosine_similarity(moved.flatten(), noise.flatten(), dim=0).abs() < 0.1
    torch.testing.assert_close(moved.norm(), noise.norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("normalize", ["rms", "running"])
@pytest.mark.parametrize("what", ["matrices", "gains"])
def test_a_log_replays_and_resumes_bitwise(llama, token_losses, token_batches, tmp_path, what, normalize):
    batches = token_batches(3)

    def refined(model, name, steps):
        tensors = {"layer.0": everything(model)} if what == "matrices" else vector_groups(model, what)
        refiner = ZeroOrderRefiner(
            *(model, token_losses),
            tensors={k: p for group in tensors.values() for k, p in group.items()},
            deployment=Deployment(everything(model), 0.2),
            trajectory=tmp_path / name,
            **(OPTIONS | {"normalize": normalize}),
        )
        for step in range(refiner.steps, steps):
            refiner.step(batches[step % 3])
        return refiner

    base, whole, cut, resumed = (copy.deepcopy(llama) for _ in range(4))
    refined(whole, "whole", 6).finish()
    refined(cut, "cut", 4)
    refined(resumed, "cut", 6).finish()
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert same(resumed, whole)
    assert replay(base, tmp_path / "whole") == 6
    assert same(base, whole)
    assert not same(llama, whole)
    assert all(("rms" in json.loads(line)) == (normalize == "running") for line in _steps(tmp_path / "whole"))


def _steps(log):
    return [line for line in log.read_text().splitlines() if '"step"' in line]


def test_a_step_that_sees_little_slope_goes_less_far():
    """A loss whose slope falls to a tenth: rms takes a full step all the same."""
    lengths = {}
    for normalize in ("rms", "running"):
        model, scale = Quadratic(), [1.0]

        def loss(m, _, scale=scale):
            return scale[0] * m.loss()

        refiner = ZeroOrderRefiner(
            model, loss, tensors=dict(model.named_parameters()), **OPTIONS | {"normalize": normalize}
        )
        for _ in range(5):
            refiner.step(None)
        scale[0], before = 0.1, copy.deepcopy(model.state_dict())
        refiner.step(None)
        lengths[normalize] = sum((p - before[k]).norm() for k, p in model.named_parameters())
    assert lengths["running"] < 0.3 * lengths["rms"]
    assert running_rms([3.0]) == 3.0


def test_curvature_of_a_quadratic_is_what_it_is():
    """tr H in coordinates relative to each matrix's rms, and the slope there."""
    model = Quadratic()
    before = copy.deepcopy(model.state_dict())
    scales = [p.detach().square().mean() for p in model.parameters()]
    trace = sum((model.h.sum() * s).item() for s in scales)
    slopes = [model.h * p.detach()[0] * s.sqrt() for p, s in zip(model.parameters(), scales, strict=True)]
    length = torch.cat(slopes).norm().item()
    options = OPTIONS | {"queries": 400}
    refiner = ZeroOrderRefiner(model, lambda m, _: m.loss(), tensors=dict(model.named_parameters()), **options)
    found = refiner.curvature(None, None)
    assert found.trace == pytest.approx(trace, rel=1e-2)  # signs: every query gives the trace of a diagonal exactly
    assert found.slope == pytest.approx(length, rel=0.15)
    assert found.shared == pytest.approx(found.slope)  # of the same batch twice
    assert found.convex
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not Curvature([1.0, 1.0, 1.0], [5.0, -4.0, 1.0], 0.1).convex


def test_a_step_goes_no_further_than_curvature_was_seen():
    slopes = [[0.02, -0.02, 0.02, -0.02]] * 3
    flat = Curvature(slopes, [0.01, 0.02, 0.01, 0.02], mu=0.1)
    assert flat.rate(4) == 0.2  # and so each coordinate moves by .1
    assert flat.gain(4) == pytest.approx(0.2 * 0.02 - 0.2**2 * 0.015 / 8)
    assert Curvature(slopes, [-1.0, -2.0, -1.0, -2.0], mu=0.1).rate(4) == 0.2
    assert Curvature(slopes, [1.0, 2.0, 1.0, 2.0], mu=0.1).rate(4) == pytest.approx(4 * 0.02 / 1.5)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 3), st.integers(2, 5), st.integers(0, 2**16))
def test_what_batches_share_is_told_from_what_is_their_own(common, batches, seed):
    """Slopes with a part that all batches have, and one of size 1 that each has for itself."""
    drawn = np.random.default_rng(seed)
    both = common * drawn.standard_normal(2000) + drawn.standard_normal((batches, 2000))
    found = Curvature(both.tolist(), [1.0, 1.1], mu=0.1)
    assert found.slope == pytest.approx((1 + common**2) ** 0.5, rel=0.1)
    assert found.shared == pytest.approx(common, rel=0.15, abs=0.25)
    own = Curvature((both - both.mean(0)).tolist(), [1.0, 1.1], mu=0.1)
    assert own.shared == 0
    assert own.rate(4) == 0


def test_a_measurement_leaves_nothing_and_meets_a_draw_for_each_batch(llama, token_losses, token_batches):
    before, seen = copy.deepcopy(llama.state_dict()), []
    weight = llama.model.layers[0].mlp.up_proj.weight
    matrices = {"w": weight}

    def noting(model, batch):
        seen.append(weight.detach().clone())
        return token_losses(model, batch)

    options = OPTIONS | {"queries": 2, "layers": ["layer.1"], "deployment": Deployment(matrices, 0.1)}
    refiner = ZeroOrderRefiner(llama, noting, **options)
    refiner.curvature(*token_batches(2))
    assert [torch.equal(one, seen[0]) for one in seen[:3]] == [True] * 3  # L₊, L₀ and L₋ of one query
    assert len({tuple(one[0, :4].tolist()) for one in seen}) == 2 * 2  # another draw for each query and batch
    assert all(torch.equal(p, before[name]) for name, p in llama.named_parameters())
    with pytest.raises(ValueError, match="give two batches at least"):
        refiner.curvature(*token_batches(1))


@pytest.mark.parametrize("normalized", [False, True])
def test_the_rate_by_curvature_is_the_best_of_its_neighbours(normalized):
    """And the gain what one step brings, on average."""
    queries, gains = 4, {}
    probe = ZeroOrderRefiner(
        (model := Quadratic()),
        lambda m, _: m.loss(),
        tensors=dict(model.named_parameters()),
        **OPTIONS | {"queries": 64, "mu": 1.0},
    )
    found = probe.curvature(None, None)
    best = found.rate(queries) / (1.0 if normalized else found.slope)
    assert best < queries**0.5
    for factor in (0.25, 1.0, 2.5):
        gains[factor] = 0.0
        for seed in range(60):
            model = Quadratic()
            options = {"queries": queries, "seed": seed, "lr": factor * best, "mu": 0.1}
            options["normalize"] = "rms" if normalized else "none"
            before = model.loss().item()
            refiner = ZeroOrderRefiner(model, lambda m, _: m.loss(), tensors=dict(model.named_parameters()), **options)
            refiner.step(None)
            gains[factor] += (before - model.loss().item()) / 60
    assert max(gains, key=gains.__getitem__) == 1.0
    assert gains[1.0] == pytest.approx(found.gain(queries), rel=0.35)
