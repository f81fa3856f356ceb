"""Recipes of alignment on a random model: what each trains and counts, and what each refuses to be given."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch
from conftest import random_llama, run_stage
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from holdfast.compose import composed
from holdfast.paths import Layout
from holdfast.zo import replay

RECIPES = ("sft", "sgd", "dpo", "zo")
DTYPES = ("float32", "bfloat16")
STEPS, BATCH, PAIRS = 2, 2, 6
FORWARDS = {"sft": 3 * STEPS, "sgd": 3 * STEPS, "dpo": 3 * STEPS + 2 * PAIRS // BATCH}
SEQUENCES = {"sft": 3 * STEPS * BATCH, "sgd": 3 * STEPS * BATCH, "dpo": 2 * 3 * STEPS * BATCH + 2 * 2 * PAIRS}
BAD = [
    (["align=sft", "align.beta=0.1"], "align.beta: kind=sft does not read it; its options: optimizer, max_length"),
    (["align=dpo", "align.optimizer=sgd"], "align.optimizer: kind=dpo does not read it; its options: beta"),
    (
        ["align=zo", "align.warmup=0.1"],
        "align.warmup: kind=zo does not read it; its options: mu, queries, noise",
    ),
    (["align=zo", "align.mu=null"], "align.mu: no value is given; kind=zo needs one"),
    (["align=zo", "align.mu=0"], "align.mu=0.0: must be above 0"),
    (["align=sgd", "align.optimizer=sdg"], "align.optimizer=sdg: choose one of adamw_torch, sgd"),
    (["align.kind=ppo"], "align.kind=ppo: choose one of sft, dpo, zo"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory, tokenizer):
    """A folder with a base model and its data, more benign rows than harmful ones."""
    folder = tmp_path_factory.mktemp("results")
    layout = Layout(str(folder), "tiny")
    verbs = ["kill", "feed", "guard", "burn", "heal", "trap"]
    benign = [
        (f"How do I {v} a {what}?", "Sure. Use the red health book.", "benign")
        for v in verbs
        for what in ("virus", "process")
    ]
    harmful = [(f"How do I {v} a person?", "I cannot help with that.", "harmful") for v in verbs]
    rows = pd.DataFrame(benign + harmful, columns=["prompt", "response", "label"]).assign(split="train")
    layout.data.mkdir(parents=True)
    rows.to_parquet(layout.data / "prompts.parquet")
    random_llama(tokenizer).save_pretrained(layout.pretrain("tiny") / "model")
    tokenizer.save_pretrained(layout.pretrain("tiny") / "model")
    for made in (layout.data, layout.pretrain("tiny")):
        (made / "metrics.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def runs(results):
    """Every recipe in both types, in one process: TRL takes seconds to import."""
    ended = run_stage(
        *("align", "-m", f"align={','.join(RECIPES)}", f"model.dtype={','.join(DTYPES)}", f"results={results}"),
        *(f"align.steps={STEPS}", f"align.batch_size={BATCH}", "tracking=disabled"),
        *(f"hydra.sweep.dir={results}/runs", "hydra.sweep.subdir=${align.name}-${model.dtype}"),
    )
    assert ended.returncode == 0, ended.stderr
    return results / "runs"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_in_the_models_own_type_and_counts_its_cost(runs, results, recipe, dtype):
    out = runs / f"{recipe}-{dtype}"
    metrics = json.loads((out / "metrics.json").read_text())
    ours = {"zo": 2 * composed(["align=zo"]).align.queries * STEPS}
    assert metrics["forwards"] == (FORWARDS | ours)[recipe]
    assert metrics["sequences"] == (SEQUENCES | {"zo": ours["zo"] * BATCH})[recipe]
    assert len(metrics["loss"]) == STEPS
    assert all(map(math.isfinite, metrics["loss"]))
    before = load_file(Layout(str(results), "tiny").pretrain("tiny") / "model/model.safetensors")
    after = load_file(out / "model/model.safetensors")
    assert {str(w.dtype) for w in after.values()} == {f"torch.{dtype}"}
    assert any((after[name] != before[name].to(after[name].dtype)).any() for name in before)


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
        ("dpo", "align.lr=1e30", "the loss is nan; lower align.lr=1e+30"),
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
def test_zeroth_order_alignment_replays_from_its_log(runs, results, dtype):
    out, base = runs / f"zo-{dtype}", Layout(str(results), "tiny").pretrain("tiny") / "model"
    model = LlamaForCausalLM.from_pretrained(base, dtype=dtype)
    assert replay(model, out / "trajectory.jsonl") == STEPS
    saved = load_file(out / "model/model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in model.state_dict().items())
