"""The probe: exact on a quadratic, the same with and without prefix reuse, and no dearer than its bound."""

from __future__ import annotations

import warnings

import pytest
import torch
from test_prefix import ARCHITECTURES, losses, padded_batch, random_model
from test_refiner import Quadratic

from holdfast.zo import Race, sensitivity, weight_groups
from holdfast.zo.layers import decoder_layers
from holdfast.zo.perturb import Masters

OPTIONS = {"sigma": 0.3, "draws": 2, "seed": 5}


def plain(model, batches, groups, *, sigma, draws, seed):
    """Group -> (up, down), by full forwards alone."""
    found = {}
    for group, tensors in groups.items():
        masters, sides = Masters(tensors, seed=seed), []
        for sign in (+1, -1):
            rows = []
            for draw in range(draws):
                masters.write(sign * sigma, step=draw, query=0)
                rows.append(torch.cat([losses(model, batch) for batch in batches]))
            sides.append(torch.stack(rows))
        masters.restore()
        found[group] = sides
    return found


def counted(model):
    """One item a run of a decoder layer: a handed layer does not reach its attention."""
    ran = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: ran.append(1))
    return ran


def test_antithetic_sensitivity_is_exact_on_a_diagonal_quadratic():
    """With Rademacher noise and diagonal H, one draw gives ½ σ² s² tr H exactly."""
    model = Quadratic()
    found = sensitivity(model, lambda m, _: m.loss(), [None], weight_groups(model), sigma=0.3, draws=2, seed=0)
    for layer, name in zip(model.model.layers, ("layer.0", "layer.1"), strict=True):
        expected = 0.5 * 0.3**2 * layer.weight.square().mean() * model.h.sum()
        assert found[name].rise.flatten().tolist() == pytest.approx([expected.item()] * 2, rel=1e-3)
        linear = (found[name].one_sided - found[name].rise).abs()
        assert torch.allclose(linear, (found[name].up - found[name].down).abs() / 2, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reuse_gives_the_bits_of_full_forwards(name, dtype):
    """Every group, over two batches of unequal padding, tied and untied; weights end as they began."""
    model, batches = random_model(name, dtype), [padded_batch("left"), padded_batch("right")]
    groups, before = weight_groups(model), {k: p.clone() for k, p in model.named_parameters()}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sensitivity(model, losses, batches, groups, **OPTIONS)
        clean, expected = torch.cat([losses(model, b) for b in batches]), plain(model, batches, groups, **OPTIONS)
    assert list(found) == list(groups)
    for group, (up, down) in expected.items():
        assert torch.equal(found[group].clean, clean)
        assert torch.equal(found[group].up, up)
        assert torch.equal(found[group].down, down)
        assert found[group].rise.shape == (2, 6)
        assert found[group].rise.abs().sum() > 0
    assert all(torch.equal(before[k], p) for k, p in model.named_parameters())


@pytest.mark.parametrize(("draws", "count"), [(1, 1), (3, 2)])
def test_layers_run_as_often_as_the_bound_allows(draws, count):
    """L(L + 1) layers a draw and batch for all decoder layers, 2L for the embeddings, none for the head; besides,
    L to record a batch and those above the middle for the one check."""
    model = random_model("Llama")
    groups, layers = weight_groups(model), len(model.model.layers)
    batches = [padded_batch("right") for _ in range(count)]
    fixed = layers * count + layers - layers // 2
    for chosen, each in (
        (decoder_layers(groups), layers * (layers + 1)),
        (["embeddings"], 2 * layers),
        (["head"], 0),
    ):
        ran = counted(model)
        sensitivity(model, losses, batches, {k: groups[k] for k in chosen}, **OPTIONS | {"draws": draws})
        assert len(ran) == each * draws * count + fixed


def test_an_architecture_that_shows_a_difference_is_run_in_full():
    """Layers that keep a state of their own."""
    model = random_model("Llama")
    ran, calls = counted(model), []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model.lm_head.register_forward_hook(lambda module, args, out: out * (1 + len(calls)))
    with pytest.warns(UserWarning, match="all its layers run") as told:
        sensitivity(model, losses, [padded_batch("right")] * 2, weight_groups(model), **OPTIONS)
    assert len(told) == 1
    layers, groups = len(model.model.layers), len(weight_groups(model))
    assert len(ran) == layers * 2 * (1 + 2 * 2 * groups) + layers - layers // 2


def test_one_layer_and_a_head_that_is_not_above_the_layers():
    """A matrix of no known place is probed by full forwards."""
    model = random_model("Llama")
    model.model.layers = model.model.layers[:1]
    model.model.position = torch.nn.Embedding(4, 32)
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: out + model.model.position.weight[0])
    groups, batches = weight_groups(model), [padded_batch("right")]
    assert "model.position.weight" in groups["head"]
    with torch.inference_mode():
        found, expected = (
            sensitivity(model, losses, batches, groups, **OPTIONS),
            plain(model, batches, groups, **OPTIONS),
        )
    assert all(torch.equal(found[k].up, up) and torch.equal(found[k].down, down) for k, (up, down) in expected.items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_weights_are_restored_when_an_evaluation_fails(error):
    model = random_model("Llama", torch.bfloat16)
    before, seen = {k: p.clone() for k, p in model.named_parameters()}, []

    def failing(m, batch):
        seen.append(1)
        if len(seen) == 6 and error:
            raise error
        return losses(m, batch) / (len(seen) != 6)

    with pytest.raises(
        error or FloatingPointError, match=None if error else r"not finite with noise of 0\.3 in layer\.0"
    ):
        sensitivity(model, failing, [padded_batch("right")], {"layer.0": weight_groups(model)["layer.0"]}, **OPTIONS)
    assert all(torch.equal(before[k], p) for k, p in model.named_parameters())


def test_a_clean_loss_that_is_not_finite_is_said():
    with pytest.raises(FloatingPointError, match="not finite without noise"):
        sensitivity(Quadratic(), lambda m, _: m.loss() / 0, [None], weight_groups(Quadratic()), **OPTIONS)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_race_leaves_out_draws_of_those_that_lost(keep):
    """What it draws are the bits of a full probe, and whoever leads is drawn to the end."""
    model, batches = random_model("Llama"), [padded_batch("left"), padded_batch("right")]
    groups = weight_groups(model)
    layers = decoder_layers(groups)
    with torch.no_grad():
        for place, layer in enumerate(layers):  # half of them do nothing, disturbed or not
            for tensor in groups[layer].values():
                tensor.mul_(20.0 if place % 2 else 0.01)
    given = {"sigma": 1.0, "draws": 9, "seed": 5}
    whole = sensitivity(model, losses, batches, groups, **given)
    raced = sensitivity(model, losses, batches, groups, **given, race=Race(layers, keep))
    assert list(raced) == list(whole)
    for group, sides in raced.items():
        count = len(sides.up)
        assert count == 9 or (group in layers and count in (2, 4, 8))
        assert torch.equal(sides.up, whole[group].up[:count])
        assert torch.equal(sides.down, whole[group].down[:count])
    assert min(len(sides.up) for sides in raced.values()) < 9
    means = {layer: whole[layer].rise.mean() for layer in layers}
    assert all(len(raced[layer].up) == 9 for layer in sorted(layers, key=lambda one: -means[one])[:keep])


def test_a_race_seldom_drops_a_winner():
    """Rises of layers that differ little, with draws and examples that layers share in part."""
    g, wrong, spared = torch.Generator().manual_seed(0), 0, 0
    true = torch.linspace(0, 1, 12)
    for _ in range(200):
        common = 0.3 * torch.randn(4, 1, generator=g) + torch.randn(1, 32, generator=g)
        noise = 0.3 * torch.randn(12, 4, 1, generator=g) + torch.randn(12, 4, 32, generator=g)
        rises = {f"layer.{k}": true[k] + common + noise[k] for k in range(12)}
        over = Race(list(rises), 4).over(rises)
        wrong += bool(over & {f"layer.{k}" for k in range(8, 12)})
        spared += len(over)
    assert wrong <= 4
    assert spared / 200 > 1.5
