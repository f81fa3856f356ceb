"""Refinement along alignment directions: descends, is exactly anchor + c·Δ, and replays from its log."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import random_llama
from test_refiner import Quadratic
from test_trajectory import same

from holdfast.zo import (
    Deployment,
    TrajectoryError,
    ZeroOrderRefiner,
    alignment_directions,
    fingerprint,
    replay,
    singular_directions,
    weight_groups,
    write_directions,
)
from holdfast.zo.noise import DIRECTION, Stream, words

OPTIONS = {"mu": 0.2, "lr": 0.1, "queries": 2, "normalize": "rms", "seed": 3}


@pytest.fixture
def origin(tokenizer):
    """The model before alignment: this one differs from `llama` in every matrix but one."""
    model = random_llama(tokenizer)
    g = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and "q_proj" not in name:
                p += 0.02 * torch.randn(p.shape, generator=g)
    return model


def matrices(model):
    return [k for group in weight_groups(model).values() for k in group]


def under(sigma, model):
    """Weight noise on all matrices."""
    return Deployment({name: p for name, p in model.named_parameters() if p.dim() > 1}, sigma)


def refined(model, origin, losses, batches, steps, *, path=None, finish=True, sigma=0.1, **changes):
    options = OPTIONS | {"directions": alignment_directions(model, origin, matrices(model))} | changes
    refiner = ZeroOrderRefiner(model, losses, trajectory=path, deployment=under(sigma, model), **options)
    for step in range(refiner.steps, steps):
        refiner.step(batches[step % len(batches)])
    if finish:
        refiner.finish()
    return refiner


def quadratic_directions(model):
    return {k: -p.detach().clone() for k, p in model.named_parameters()}  # c = 1 is the minimum


@pytest.mark.parametrize("sigma", [0.0, 0.2])
@pytest.mark.parametrize("normalize", ["none", "rms", "running"])
def test_it_descends_on_a_quadratic(sigma, normalize):
    model = Quadratic()
    before = model.loss().item()
    options = {"mu": 0.1, "lr": 0.01 if normalize == "none" else 0.05, "queries": 4}
    refiner = ZeroOrderRefiner(
        model,
        lambda m, _: m.loss(),
        directions=quadratic_directions(model),
        deployment=under(sigma, model),
        normalize=normalize,
        **options,
    )
    for _ in range(60):
        refiner.step(None)
    assert model.loss().item() < 0.05 * before
    assert list(refiner.masters.coefficients.values()) == pytest.approx([1.0, 1.0], abs=0.2)


def test_the_estimate_is_the_gradient_by_hand():
    """g ε of one query on a quadratic, whose two-point difference is exact: ε·∇_c L, without noise."""
    model = Quadratic()
    directions = quadratic_directions(model)
    slopes = [-(model.h * layer.weight[0].detach() ** 2).sum().item() for layer in model.model.layers]  # dL/dc at 0
    refiner = ZeroOrderRefiner(model, lambda m, _: m.loss(), directions=directions, mu=0.1, lr=0.01, seed=6)
    drawn = words(
        DIRECTION, Stream("rademacher", 6, 0), tensors=list(refiner.masters.draws.names.values()), queries=[0]
    )
    signs = [1 - 2 * (word & 1) for word in drawn[0].tolist()]
    (g,) = refiner.step(None).projected_gradients
    assert g == pytest.approx(sum(e * s for e, s in zip(signs, slopes, strict=True)), rel=1e-3)
    assert list(refiner.masters.coefficients.values()) == pytest.approx([-0.01 * g * e for e in signs])


def test_both_sides_of_a_query_meet_the_same_noise(llama, origin, token_losses, token_batches):
    """Between L₊ and L₋ the weights differ along Δ alone; noise is fresh for every query."""
    seen, name = [], "model.layers.1.mlp.up_proj.weight"

    def noting(model, batch):
        seen.append(dict(model.named_parameters())[name].detach().clone())
        return token_losses(model, batch)

    (direction,) = alignment_directions(llama, origin, [name]).values()
    start = dict(llama.named_parameters())[name].detach().clone()
    refined(llama, origin, noting, token_batches(1), 1)
    for up, down in (seen[:2], seen[2:]):
        assert torch.allclose((up - down).abs(), 2 * 0.2 * direction.abs(), atol=1e-6)
        noise = (up + down) / 2 - start
        assert torch.allclose(noise.abs(), 0.1 * start.square().mean().sqrt(), atol=1e-6)
    assert not torch.allclose(seen[0] + seen[1], seen[2] + seen[3], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_the_anchors_and_a_multiple_of_the_directions(llama, origin, token_losses, token_batches, dtype):
    llama.to(dtype)
    start = {k: p.detach().float().clone() for k, p in llama.named_parameters()}
    directions = alignment_directions(llama, origin, matrices(llama))
    refiner = refined(llama, origin, token_losses, token_batches(3), 5)
    named = dict(llama.named_parameters())
    for name, direction in directions.items():
        c = torch.tensor(refiner.masters.coefficients[name, 0], dtype=torch.float32)
        assert c != 0
        assert torch.equal(named[name], (start[name] + c * direction).to(dtype))
    assert refiner.drift() == 0
    untouched = set(named) - set(directions)
    assert untouched
    assert all(torch.equal(named[k].float(), start[k]) for k in untouched)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replay_and_resumption_are_bitwise(llama, origin, token_losses, token_batches, tmp_path, dtype, sigma):
    base, batches = llama.to(dtype), token_batches(3)
    whole, cut, resumed = (copy.deepcopy(base) for _ in range(3))
    done = refined(whole, origin, token_losses, batches, 8, path=tmp_path / "whole", sigma=sigma)
    refined(cut, origin, token_losses, batches, 5, path=tmp_path / "cut", finish=False, sigma=sigma)
    with (tmp_path / "cut").open("ab") as log:
        log.write(b'{"chain": "torn')
    again = refined(resumed, origin, token_losses, batches, 8, path=tmp_path / "cut", sigma=sigma)
    assert again.losses == done.losses
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert same(resumed, whole)
    assert not same(whole, base)
    assert replay(base, tmp_path / "whole", origin) == 8
    assert same(whole, base)


def test_a_log_says_which_origin_it_needs(llama, origin, token_losses, token_batches, tmp_path):
    base, other = copy.deepcopy(llama), copy.deepcopy(origin)
    refined(llama, origin, token_losses, token_batches(1), 2, path=tmp_path / "log")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 0.1
    before = fingerprint(base)
    with pytest.raises(TrajectoryError, match="`origin`, the model before alignment, is needed"):
        replay(base, tmp_path / "log")
    with pytest.raises(TrajectoryError, match="another origin"):
        replay(base, tmp_path / "log", other)
    with pytest.raises(TrajectoryError, match="not a tensor of one shape in both"):
        replay(base, tmp_path / "log", Quadratic())
    with pytest.raises(TrajectoryError, match="of another refinement"):
        refined(copy.deepcopy(base), other, token_losses, token_batches(1), 2, path=tmp_path / "log")
    with pytest.raises(TrajectoryError, match="of another refinement"):
        ZeroOrderRefiner(base, token_losses, layers=["layer.0"], mu=0.2, lr=0.1, trajectory=tmp_path / "log")
    assert fingerprint(base) == before


def test_directions_of_zero_do_no_harm(llama, token_losses, token_batches):
    before = copy.deepcopy(llama)
    refiner = refined(llama, copy.deepcopy(llama), token_losses, token_batches(1), 3)
    assert same(before, llama)
    assert refiner.drift() == 0


@pytest.mark.parametrize("steps", [0, 2])
def test_a_loss_that_is_not_finite_restores(llama, origin, token_losses, token_batches, steps):
    seen = []

    def breaking(model, batch):
        seen.append(1)
        return token_losses(model, batch) / (len(seen) <= 4 * steps)

    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight[0, 0] = -0.0
    refiner = refined(llama, origin, breaking, token_batches(1), steps)
    before = fingerprint(llama)
    with pytest.raises(FloatingPointError, match=f"step {steps}"):
        refiner.step(token_batches(1)[0])
    assert fingerprint(llama) == before


@pytest.mark.parametrize("wrong", [{"nowhere": torch.zeros(2)}, {"model.norm.weight": torch.zeros(2)}])
def test_a_direction_that_does_not_fit_is_named(llama, token_losses, wrong):
    with pytest.raises(ValueError, match=f"no tensor {next(iter(wrong))} of shape"):
        ZeroOrderRefiner(llama, token_losses, directions=wrong, mu=0.1, lr=0.1)


def decoder(model):
    return [k for layer, group in weight_groups(model).items() if layer.startswith("layer.") for k in group]


def test_singular_directions_are_the_largest_parts_of_the_difference(llama, origin):
    name = "model.layers.1.mlp.up_proj.weight"
    delta = alignment_directions(llama, origin, [name])[name]
    found = singular_directions(llama, origin, [name], 3)[name]
    values = torch.linalg.svdvals(delta)
    parts = [found.left[k, :, None] * found.right[k] for k in range(3)]
    for k, part in enumerate(parts):
        assert part.norm() == pytest.approx(values[k].item(), rel=0.05)
        assert (part * delta).sum() / part.norm() == pytest.approx(part.norm().item(), rel=1e-3)
        assert all(abs((part * other).sum()) < 1e-4 for other in parts[:k])
    whole = singular_directions(llama, origin, [name], min(delta.shape))[name]
    torch.testing.assert_close(whole.left.T @ whole.right, delta, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_along_singular_directions_it_is_exact_and_replays_from_files(
    llama, origin, token_losses, token_batches, dtype, tmp_path
):
    llama.to(dtype)
    base, path = copy.deepcopy(llama), tmp_path / "trajectory.jsonl"
    directions = singular_directions(llama, origin, decoder(llama), 2)
    write_directions(path, directions)
    refiner = ZeroOrderRefiner(llama, token_losses, directions=directions, trajectory=path, **OPTIONS)
    for batch in token_batches(3):
        refiner.step(batch)
        assert refiner.drift() == 0
    refiner.finish()
    assert len(set(refiner.masters.coefficients.values())) > len(directions)
    for name, one in directions.items():
        moved = torch.zeros_like(refiner.masters.anchors[name], dtype=torch.float32)
        for k in range(2):
            moved += refiner.masters.coefficients[name, k] * one.left[k, :, None] * one.right[k]
        expected = base.get_parameter(name).float() + moved
        torch.testing.assert_close(llama.get_parameter(name).float(), expected, atol=1e-5, rtol=1e-2)
    again = copy.deepcopy(base)
    assert replay(again, path) == 3  # no origin is needed
    assert fingerprint(again) == fingerprint(llama)


def test_singular_directions_that_lack_or_are_others_are_refused(llama, origin, token_losses, token_batches, tmp_path):
    base, path = copy.deepcopy(llama), tmp_path / "trajectory.jsonl"
    directions = singular_directions(llama, origin, decoder(llama), 1)
    refiner = ZeroOrderRefiner(llama, token_losses, directions=directions, trajectory=path, **OPTIONS)
    refiner.step(*token_batches(1))
    refiner.finish()
    with pytest.raises(TrajectoryError, match=r"its directions, directions.safetensors, cannot be read"):
        replay(copy.deepcopy(base), path)
    write_directions(path, singular_directions(base, origin, decoder(base), 2))
    with pytest.raises(TrajectoryError, match=r"made with others than directions.safetensors holds"):
        replay(copy.deepcopy(base), path)
    with pytest.raises(ValueError, match=r"norm.weight: has no 2 singular directions; its shape is \(64,\)"):
        singular_directions(base, origin, ["model.norm.weight"], 2)
