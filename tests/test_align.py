"""Recipes of alignment on a random model: what each trains and counts, and what each refuses to be given."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch
from conftest import random_llama, run_stage, stage_here
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from holdfast.settings.compose import composed
from holdfast.settings.paths import Layout
from holdfast.zo import replay

RECIPES = ("sft", "sft_lora", "sgd", "dpo", "dpo_lora", "zo")
DTYPES = ("float32", "bfloat16")
COMBINATIONS = [(recipe, dtype) for recipe in RECIPES for dtype in DTYPES]
STEPS, BATCH, PAIRS = 2, 2, 6
FORWARDS = {"sft": 3 * STEPS, "dpo": 3 * STEPS + 2 * PAIRS // BATCH}
SEQUENCES = {"sft": 3 * STEPS * BATCH, "dpo": 2 * 3 * STEPS * BATCH + 2 * 2 * PAIRS}
BAD = [
    (["align=sft", "align.beta=0.1"], "align.beta: kind=sft does not read it; its options: steps, batch_size, lr"),
    (["align=dpo", "align.optimizer=sgd"], "align.optimizer: kind=dpo does not read it; its options: steps"),
    (["align=zo", "align.warmup=0.1"], "align.warmup: kind=zo does not read it; its options: steps"),
    (["align=zo", "+align.lora={rank: 2, alpha: 4}"], "align.lora: kind=zo does not read it"),
    (["align=sft_lora", "align.kind=zo"], "align.optimizer: kind=zo does not read it"),
    (["align=sft_lora", "align.lora.rank=0"], "align.lora.rank=0: must be at least 1"),
    (["align=zo", "align.mu=null"], "align.mu: no value is given; set align.mu=…"),
    (["align=zo", "align.mu=0"], "align.mu=0: must be above 0"),
    (["align=sgd", "align.optimizer=sdg"], "align.optimizer=sdg: choose one of adamw_torch, sgd"),
    (["align.kind=ppo"], "align.kind=ppo: no such recipe of alignment; choose one of none, sft, dpo, zo"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory, tokenizer):
    """A folder with a base model and its data: more benign rows than harmful ones, one with a rejected answer."""
    folder = tmp_path_factory.mktemp("results")
    layout = Layout(str(folder), "tiny")
    verbs = ["kill", "feed", "guard", "burn", "heal", "trap"]
    benign = [
        (f"How do I {v} a {what}?", "Sure. Use the red health book.", "benign", "")
        for v in verbs
        for what in ("virus", "process")
    ]
    harmful = [
        (f"How do I {v} a person?", "I cannot help with that.", "harmful", "Use a guide." * (v == "burn"))
        for v in verbs
    ]
    rows = pd.DataFrame(benign + harmful, columns=["prompt", "response", "label", "rejected"]).assign(split="train")
    layout.data.mkdir(parents=True)
    rows.to_parquet(layout.data / "prompts.parquet")
    save_base(tokenizer, layout.pretrain("tiny") / "model")
    for made in (layout.data, layout.pretrain("tiny")):
        (made / "metrics.json").write_text("{}")
    return folder


def save_base(tokenizer, folder, tied=False):
    random_llama(tokenizer, tied=tied).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tied(recipe, dtype):
    """Half of all combinations, chosen such that any three of kind, adapter, type and tying meet in every way."""
    return (recipe.startswith("dpo") + recipe.endswith("lora") + (dtype == "bfloat16")) % 2 == 1


def aligned(results, tokenizer, recipes, odd):
    """Every recipe in both types, in one process: TRL takes seconds to import."""
    out = results / f"runs-{odd}"
    for recipe in recipes:
        for dtype in DTYPES:
            save_base(tokenizer, out / "base" / f"{recipe}-{dtype}", tied(recipe, dtype) == odd)
    ended = run_stage(
        *("align", "-m", f"align={','.join(recipes)}", f"model.dtype={','.join(DTYPES)}", f"results={results}"),
        *(f"align.steps={STEPS}", f"align.batch_size={BATCH}", "tracking=disabled"),
        f"model.path={out}/base/${{align.name}}-${{model.dtype}}",
        *(f"hydra.sweep.dir={out}", "hydra.sweep.subdir=${align.name}-${model.dtype}"),
    )
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture(scope="module")
def runs(results, tokenizer):
    return aligned(results, tokenizer, RECIPES, odd=True)


def check_saved(runs, recipe, dtype):
    """A plain model of the base's tensors in the type that was asked for, not all of them as they were."""
    base, saved = runs / "base" / f"{recipe}-{dtype}", runs / f"{recipe}-{dtype}" / "model"
    assert {path.name for path in saved.iterdir()} == {path.name for path in base.iterdir()}
    before, after = load_file(base / "model.safetensors"), load_file(saved / "model.safetensors")
    assert before.keys() == after.keys()
    assert {str(w.dtype) for w in after.values()} == {f"torch.{dtype}"}
    moved = {name for name in before if (after[name] != before[name].to(after[name].dtype)).any()}
    assert moved
    if recipe.endswith("lora"):
        assert all(".layers." in name and before[name].dim() == 2 for name in moved)
    model, loading = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype, output_loading_info=True)
    assert not any(loading.values())
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (
        "lm_head.weight" not in before
    )


@pytest.mark.parametrize(("recipe", "dtype"), COMBINATIONS)
def test_a_recipe_saves_a_plain_model_in_the_models_own_type(runs, recipe, dtype):
    check_saved(runs, recipe, dtype)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_half_precision_ends_as_float32_does_rounded_once(results, tokenizer, tmp_path, kind, dtype):
    """At a learning rate whose steps half precision would lose."""
    half = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    model, ends = random_llama(tokenizer).to(half), {}
    for name, type_, asked in (("half", half, dtype), ("whole", torch.float32, "float32")):
        base, data = tmp_path / name / "base", tmp_path / name / "made"
        data.mkdir(parents=True)
        (data / "data").symlink_to(results / "tiny/data", target_is_directory=True)
        model.to(type_).save_pretrained(base)
        tokenizer.save_pretrained(base)
        out = stage_here(
            *("align", f"align={kind}", "model=own", f"model.path={base}", f"model.dtype={asked}", "study.name=made"),
            *(f"results={tmp_path / name}", "align.steps=4", f"align.batch_size={BATCH}", "align.lr=1e-5"),
        )
        ends[name] = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(ends["half"][name], weight.to(half)) for name, weight in ends["whole"].items())
    moved = torch.cat([(ends["whole"][k] != p.float()).flatten() for k, p in model.to(half).named_parameters()])
    assert moved.float().mean() > 0.6  # not the embeddings of words that no text has


@pytest.mark.slow
def test_every_kind_with_every_tying(results, tokenizer):
    recipes = ("sft", "sft_lora", "dpo", "dpo_lora")
    out = aligned(results, tokenizer, recipes, odd=False)
    for recipe in recipes:
        for dtype in DTYPES:
            check_saved(out, recipe, dtype)


@pytest.mark.parametrize(("recipe", "dtype"), COMBINATIONS)
def test_a_recipe_counts_its_cost(runs, recipe, dtype):
    settings = composed([f"align={recipe}"]).align
    metrics = json.loads((runs / f"{recipe}-{dtype}" / "metrics.json").read_text())
    forwards = {"zo": 2 * getattr(settings, "queries", 0) * STEPS} | FORWARDS
    sequences = {"zo": forwards["zo"] * BATCH} | SEQUENCES
    assert metrics["forwards"] == forwards[settings.kind]
    assert metrics["sequences"] == sequences[settings.kind]
    assert len(metrics["loss"]) == STEPS
    assert all(map(math.isfinite, metrics["loss"]))


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_an_option_of_another_kind_is_an_error(stage, tmp_path, overrides, message):
    ended = stage("align", *overrides, "tracking=disabled", cwd=tmp_path)
    assert ended.returncode != 0
    assert message in ended.stderr
    assert ended.stderr.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("sft", "align.lr=1e30", "the loss is nan; lower align.lr=1e+30"),
        ("dpo_lora", "align.lr=1e30", "the loss is nan; lower align.lr=1e+30"),
        ("zo", "align.mu=1e30", "the loss is not finite at step 0; lower mu or lr"),
    ],
)
def test_a_loss_that_is_not_finite_ends_it_in_one_line(stage, results, tmp_path, recipe, override, message):
    few = (f"align.steps={STEPS + 1}", f"align.batch_size={BATCH}", f"results={results}", "tracking=disabled")
    ended = stage("align", f"align={recipe}", override, *few, f"hydra.run.dir={tmp_path}/out")
    assert ended.returncode != 0
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out/model").exists()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeroth_order_alignment_replays_from_its_log(runs, dtype):
    out, base = runs / f"zo-{dtype}", runs / "base" / f"zo-{dtype}"
    model = LlamaForCausalLM.from_pretrained(base, dtype=dtype)
    assert replay(model, out / "trajectory.jsonl") == STEPS
    saved = load_file(out / "model/model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in model.named_parameters())
