"""Every perturbation: common draws, bitwise restoration, no effect at level 0."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import random_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.perturbations import Point, perturbed
from holdfast.perturbations.quantization import rounded

POINTS = [
    Point("weight_noise", "weight noise", "weight_noise", 0.3, 0, 128),
    Point("activation_noise", "activation noise", "activation_noise", 0.3, 0, 128),
    Point("rtn", "quantization", "rtn", 3, 0, 16),
    Point("int8", "quantization", "bnb", 8, 0, 128),
    Point("nf4", "quantization", "bnb", 4, 0, 128),
]
IDS = torch.arange(5, 17).view(2, 6)


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("point", POINTS, ids=lambda p: p.name)
def test_acts_and_restores_bitwise(llama, point):
    before, clean = copy.deepcopy(llama.state_dict()), logits(llama)
    with perturbed(llama, point, seed=0) as changed:
        noisy = logits(changed)
    assert not torch.equal(noisy, clean)
    assert torch.isfinite(noisy).all()
    assert all(torch.equal(before[name], p) for name, p in llama.state_dict().items())
    assert torch.equal(logits(llama), clean)


@pytest.mark.parametrize("point", POINTS, ids=lambda p: p.name)
def test_restores_after_an_error(llama, point):
    clean = logits(llama)
    with pytest.raises(RuntimeError), perturbed(llama, point, seed=0):
        raise RuntimeError
    assert torch.equal(logits(llama), clean)


@pytest.mark.parametrize("point", POINTS[:2], ids=lambda p: p.name)
def test_level_zero_is_clean(llama, point):
    zero = Point(point.name, point.family, point.kind, 0.0, 0, 128)
    clean = logits(llama)
    with perturbed(llama, zero, seed=0) as changed:
        assert torch.equal(logits(changed), clean)


def test_draws_are_common_to_methods_and_differ_by_seed_and_draw(tokenizer):
    """Two different models meet the same z; another seed or draw is another z."""
    point, rms = POINTS[0], lambda w: w.square().mean().sqrt()
    noises = []
    for scale, seed, draw in ((1.0, 0, 0), (1.7, 0, 0), (1.0, 1, 0), (1.0, 0, 1)):
        model = random_llama(tokenizer)
        weight = model.model.layers[1].mlp.up_proj.weight
        weight.data *= scale
        clean = weight.clone()
        with perturbed(model, Point(point.name, point.family, point.kind, 0.3, draw, 128), seed):
            noises.append((weight - clean) / (0.3 * rms(clean)))
    assert torch.allclose(noises[0], noises[1], atol=1e-4)
    assert not torch.allclose(noises[0], noises[2], atol=0.1)
    assert not torch.allclose(noises[0], noises[3], atol=0.1)


def test_weight_noise_leaves_embeddings_head_and_gains_alone(llama):
    before = copy.deepcopy(llama.state_dict())
    with perturbed(llama, POINTS[0], seed=0):
        same = {name for name, p in llama.state_dict().items() if torch.equal(p, before[name])}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= same
    assert not [name for name in same if "proj" in name]


def test_activation_noise_restarts_with_each_batch(llama):
    """The same prompts meet the same noise, whatever was generated before them."""
    with perturbed(llama, POINTS[1], seed=0) as noisy:
        first = logits(noisy)
        noisy.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False)
        assert torch.equal(logits(noisy), first)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.integers(1, 40), st.integers(1, 33), st.integers(0, 99))
def test_round_to_nearest_errs_by_at_most_half_a_step(bits, width, group, seed):
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    error = (rounded(weight, bits, group) - weight).abs()
    for chunk, wrong in zip(weight.split(group, 1), error.split(group, 1), strict=True):
        step = chunk.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert (wrong <= step / 2 + 1e-6).all()


def test_bitsandbytes_layers_are_the_real_ones(llama):
    import bitsandbytes as bnb

    kinds = {"int8": bnb.nn.Linear8bitLt, "nf4": bnb.nn.Linear4bit}
    for point in POINTS[3:]:
        with perturbed(llama, point, seed=0) as quantized:
            assert isinstance(quantized.model.layers[0].mlp.up_proj, kinds[point.name])
            assert not isinstance(quantized.lm_head, kinds[point.name])
