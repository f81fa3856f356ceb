"""Every perturbation: common draws, bitwise restoration, no effect at level 0."""

from __future__ import annotations

import copy
import dataclasses
import sys

import pytest
import torch
from conftest import point, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.datasets.tokens import prompt_ids, response_ids
from holdfast.errors import UserError
from holdfast.models.likelihood import refusal_margins
from holdfast.models.reading import Reader, Request
from holdfast.perturbations import PERTURBATIONS, Bench, grid, perturbed
from holdfast.perturbations.activations import How, _Noise
from holdfast.perturbations.masks import pruned
from holdfast.perturbations.sampler import Sampler
from holdfast.runtime.memory import Parts
from holdfast.settings.compose import composed
from holdfast.settings.paths import CONF
from holdfast.zo import PerturbationError

NAMES = sorted(path.stem for path in (CONF / "perturb").glob("*.yaml"))
IDS = torch.arange(5, 17).view(2, 6)
ON_THE_MODEL = [name for name in NAMES if name not in ("decoding", "prefill")]


@pytest.fixture
def bench(tokenizer):
    prompts = ("What is a person?", "What does kill mean?", "What is a virus?")
    rows = [(prompt_ids(tokenizer, p), response_ids(tokenizer, "A thing to keep safe.", end=True)) for p in prompts]
    return Bench(7, tokenizer.pad_token_id, lambda label: rows)


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def test_every_kind_has_a_yaml():
    assert {composed([f"perturb=[{name}]"]).perturb[name].kind for name in NAMES} == set(PERTURBATIONS.kinds)


@pytest.mark.parametrize("name", ON_THE_MODEL)
def test_acts_and_restores_bitwise(llama, bench, name):
    before, clean = copy.deepcopy(llama.state_dict()), logits(llama)
    with perturbed(llama, point(name), bench) as arm:
        noisy = logits(arm.model)
    assert not torch.equal(noisy, clean)
    assert torch.isfinite(noisy).all()
    assert all(torch.equal(before[key], p) for key, p in llama.state_dict().items())
    assert torch.equal(logits(llama), clean)


@pytest.mark.parametrize("name", ON_THE_MODEL)
def test_restores_after_an_error(llama, bench, name):
    clean = logits(llama)
    with pytest.raises(RuntimeError), perturbed(llama, point(name), bench):
        raise RuntimeError
    assert torch.equal(logits(llama), clean)


@pytest.mark.parametrize(
    "name", ["weight_noise", "activation_noise", "magnitude", "wanda", "benign_finetuning", "harmful_finetuning"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_level_zero_is_clean(llama, bench, name, dtype):
    llama.to(dtype)
    clean = logits(llama)
    with perturbed(llama, point(name, 0.0), bench) as arm:
        assert torch.equal(logits(arm.model), clean)


@pytest.mark.parametrize("mode", ["relative", "absolute"])
def test_weight_noise_is_common_to_methods_and_differs_by_seed_and_draw(tokenizer, mode):
    """Two different models meet the same z; another seed or draw is another z."""
    noises = []
    for scale, seed, draw in ((1.0, 0, 0), (1.7, 0, 0), (1.0, 1, 0), (1.0, 0, 1)):
        model = random_llama(tokenizer)
        weight = model.model.layers[1].mlp.up_proj.weight.detach()
        weight *= scale
        clean = weight.clone()
        with perturbed(model, point("weight_noise", 0.3, draw, mode=mode), Bench(seed, 0)):
            moved = (weight - clean) / 0.3
            noises.append(moved / moved.square().mean().sqrt())
            size = {"relative": clean.square().mean().sqrt(), "absolute": 1.0}
            assert moved.square().mean().sqrt() == pytest.approx(float(size[mode]), rel=0.05)
    assert torch.allclose(noises[0], noises[1], atol=1e-3)
    assert not torch.allclose(noises[0], noises[2], atol=0.1)
    assert not torch.allclose(noises[0], noises[3], atol=0.1)


def test_weight_noise_leaves_embeddings_head_and_gains_alone(llama, bench):
    before = copy.deepcopy(llama.state_dict())
    with perturbed(llama, point("weight_noise"), bench):
        same = {name for name, p in llama.state_dict().items() if torch.equal(p, before[name])}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= same
    assert not [name for name in same if "proj" in name]


@pytest.mark.parametrize("place", ["residual", "norm", "mlp"])
@pytest.mark.parametrize("scale", ["relative", "absolute"])
def test_activation_noise_depends_on_the_prompt_alone(llama, tokenizer, bench, place, scale):
    """Not on the batch, its padding, or what was generated before."""
    questions = ("What is a person?", "What does it mean to kill a person?", "What?")
    prompts = [prompt_ids(tokenizer, p) for p in questions]
    openings = [response_ids(tokenizer, o, end=False) for o in ("I must decline.", "Of course.")]

    def margins(model, rows):
        reader = Reader(model, Parts("rows"), shared=False)
        return refusal_margins(reader, rows, openings[:1], openings[1:])

    with perturbed(llama, point("activation_noise", place=place, scale=scale), bench) as arm:
        together = margins(arm.model, prompts)
        arm.model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False)
        alone = torch.cat([margins(arm.model, [row]) for row in reversed(prompts)]).flip(0)
    assert torch.allclose(together, alone, atol=1e-3)
    assert not torch.allclose(together, margins(llama, prompts), atol=1e-2)


def test_activation_noise_on_some_tokens(llama, tokenizer, bench):
    """`prompt` leaves what follows from a cache alone, `generated` leaves the prompt alone."""
    ids = torch.tensor([prompt_ids(tokenizer, "What is a person?")])
    seen = {}
    for tokens in ("prompt", "generated", "all"):
        with perturbed(llama, point("activation_noise", tokens=tokens), bench) as arm, torch.inference_mode():
            first = arm.model(input_ids=ids, use_cache=True)
            seen[tokens] = first.logits, arm.model(input_ids=ids[:, :1], past_key_values=first.past_key_values).logits
    clean = llama(input_ids=ids).logits
    assert torch.equal(seen["generated"][0], clean)
    assert torch.equal(seen["prompt"][0], seen["all"][0])
    assert not torch.equal(seen["prompt"][0], clean)
    assert not torch.equal(seen["generated"][1], seen["all"][1])
    assert not torch.equal(seen["prompt"][1], seen["all"][1])


@settings(deadline=None)
@given(st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
def test_pruning_removes_the_lowest_scores_of_each_row(width, share, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, scores = (torch.randn(4, width, generator=generator) for _ in range(2))
    left = pruned(weight, scores, share)
    gone = int(share * width)
    for row, kept, score in zip(weight, left, scores, strict=True):
        order = score.argsort()
        assert (kept[order[:gone]] == 0).all()
        assert torch.equal(kept[order[gone:]], row[order[gone:]])


def test_magnitude_prunes_by_matrix(llama, bench):
    """A row of large weights keeps more of them than a row of small ones."""
    weight = llama.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[: len(weight) // 2] *= 100
    order = weight.detach().abs().flatten().argsort()
    with perturbed(llama, point("magnitude", 0.5), bench):
        gone = weight.detach().flatten() == 0
        assert gone[order[: len(order) // 2]].all()
        assert gone.float().mean() == 0.5
        assert (weight[: len(weight) // 2] == 0).float().mean() < 0.05


def test_wanda_scores_by_the_norm_of_the_inputs(llama, bench):
    """Against the layer's inputs, gathered row by row without padding."""
    layer, seen = llama.model.layers[0].mlp.down_proj, []
    watch = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    for prompt, response in bench.training("benign"):
        llama(input_ids=torch.tensor([prompt + response]))
    watch.remove()
    expected = pruned(layer.weight, layer.weight.abs() * torch.cat(seen).norm(dim=0), 0.5)
    with perturbed(llama, point("wanda", 0.5), bench):
        assert (layer.weight == expected).float().mean() > 0.999  # but for ties in rounding
        assert (layer.weight == 0).float().mean() == 0.5


@pytest.mark.parametrize("fits", [3, 1])
def test_wanda_reads_its_rows_in_batches(llama, bench, fits):
    """Without logits; a batch that runs out of memory half-way counts for nothing, and its rows once."""
    expected = wanda_weight(llama, bench)
    seen, headed = [], []

    def crowded(module, args, kwargs):
        rows = kwargs["packing"].size[0]
        if rows > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        seen.append(rows)

    hooks = [
        llama.lm_head.register_forward_hook(lambda *_: headed.append(1)),
        llama.model.layers[1].register_forward_pre_hook(crowded, with_kwargs=True),
    ]
    found = wanda_weight(llama, dataclasses.replace(bench, batch_size=2))
    for hook in hooks:
        hook.remove()
    assert seen == ([2, 1] if fits > 1 else [1] * 3)
    assert not headed
    assert (found == expected).float().mean() > 0.999  # but for ties in rounding


def wanda_weight(model, bench):
    with perturbed(model, point("wanda", 0.5), bench):
        return model.model.layers[0].mlp.down_proj.weight.detach().clone()


def test_noise_follows_the_activations_to_their_device(monkeypatch):
    """Of a model over two devices; the second one is torch's own stand-in for any."""
    monkeypatch.setattr(sys.modules[_Noise.__module__], "add_noise", lambda *_, **__: None)
    noise, ids = _Noise(How(0.6, 0), 7, 0), torch.ones(2, 6, dtype=torch.long)
    noise.locate(None, (), {"input_ids": ids})
    for device in ("cpu", "meta"):
        hidden = torch.zeros(2, 6, 8, device=device)
        assert noise.hook(3)(None, None, hidden).device == torch.device(device)
    assert {device for _, device in noise.tables} == noise.rows.keys() == {torch.device("cpu"), torch.device("meta")}


def test_padding_at_the_end_is_no_part_of_a_prompt(llama, tokenizer, bench):
    """A row meets the same noise alone and beside a longer one, where no mask says what is padding."""
    rows = [prompt_ids(tokenizer, p) for p in ("What?", "What does it mean to kill a person?")]
    width = max(map(len, rows))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    with perturbed(llama, point("activation_noise"), bench) as arm, torch.inference_mode():
        together = arm.model(input_ids=padded).logits[0, : len(rows[0])]
        alone = arm.model(input_ids=torch.tensor([rows[0]])).logits[0]
    assert torch.allclose(together, alone, atol=1e-4)


def test_weights_of_zero_are_named(llama, bench):
    with torch.no_grad():
        llama.model.layers[1].self_attn.q_proj.weight.zero_()
    words = r"layers\.1\.self_attn\.q_proj\.weight: all its weights are zero; noise relative to its rms cannot move it"
    with pytest.raises(PerturbationError, match=words), perturbed(llama, point("weight_noise"), bench):
        raise AssertionError


def test_fine_tuning_learns_its_rows_and_is_the_same_again(llama, bench):
    from holdfast.models.likelihood import Told, mean_nll

    batch = Told([(prompt, [said]) for prompt, said in bench.training("benign")], llama.device)
    with perturbed(llama, point("benign_finetuning", 20), bench) as arm:
        first = mean_nll(arm.model, batch)
    before = torch.get_rng_state()
    with perturbed(llama, point("benign_finetuning", 20), bench) as arm:
        assert torch.equal(mean_nll(arm.model, batch), first)
    assert torch.equal(before, torch.get_rng_state())
    assert (first < 0.7 * mean_nll(llama, batch)).all()


def test_sampling_draws_from_the_nucleus():
    """Frequencies of 4000 draws from three tokens, of which top-p leaves two."""
    scores = torch.tensor([[1.0, 0.0, -2.0]]).expand(4000, -1)
    sampler = Sampler(1.0, 0.9, seed=3)
    drawn = sampler.chosen(scores, [sampler.draws([row], scores.device) for row in range(4000)])
    share = torch.bincount(drawn, minlength=3) / 4000
    expected = torch.tensor([1.0, 0.0]).softmax(0)
    assert share[2] == 0
    assert share[0] == pytest.approx(float(expected[0]), abs=0.04)


def test_sampling_depends_on_the_draw_and_not_on_the_batch(llama, bench):
    requests = [Request(row) for row in IDS.tolist()]

    def sampled(some, draw=0):
        with perturbed(llama, point("decoding", draw=draw), bench) as arm:
            found = Reader(arm.model, Parts("rows"), most=5, sampler=arm.sampler).replies(some)
        return [reply.tokens for reply in found]

    assert sampled(requests)[1:] == sampled(requests[1:])
    assert sampled(requests) != sampled(requests, draw=1)


def test_levels_and_options_are_checked():
    for override, words in {
        "perturb.rtn.levels=[1]": "bits",
        "perturb.rtn.levels=[2.5]": "whole",
        "perturb.magnitude.levels=[1.5]": "share of the weights",
        "perturb.rtn.mode=relative": "kind=rtn does not read it; its options: levels",
        "perturb.rtn.group_size=null": "perturb.rtn.group_size: no value is given",
        "perturb.weight_noise.mode=norm": "choose one of relative, absolute",
    }.items():
        with pytest.raises(UserError, match=words):
            composed([override])


def test_grid_is_in_the_order_of_the_configuration():
    perturb = {"w": composed(["perturb=[weight_noise]"]).perturb["weight_noise"]}
    found = [(p.level, p.draw) for p in grid(perturb)]
    assert found == [(level, draw) for level in perturb["w"].levels for draw in range(perturb["w"].draws_at(level))]
