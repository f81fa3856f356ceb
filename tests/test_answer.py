"""The model's own answers to benign prompts that come without one, and who reads them."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from conftest import save_aligned, save_prompts, stage_here

from holdfast.settings.compose import composed
from holdfast.settings.paths import Layout
from holdfast.stages import align, evaluate, judge

GIVEN = (
    *("study=smoke", "data=local", "data.dir=.", "data.responses=self", "data.response_sentences=2"),
    *("answer.max_new_tokens=4", "evaluate.max_new_tokens=4", "perturb=[]", "tracking=disabled"),
)


@pytest.fixture
def given(tmp_path, tokenizer):
    """Every other benign prompt waits for an answer; the base model and an aligned one are there."""
    layout = Layout(str(tmp_path), "smoke")
    save_prompts(layout, 8)
    path = layout.data / "prompts.parquet"
    rows = pd.read_parquet(path)
    waiting = (rows["label"] == "benign") & (rows.index % 2 == 0)
    rows.loc[waiting, "response"] = ""
    rows.to_parquet(path)
    save_aligned(layout.pretrain("tiny"), tokenizer)
    save_aligned(layout.align("tiny", "sft", 0), tokenizer)
    return [*GIVEN, f"results={tmp_path}"], rows[waiting]


def test_it_asks_what_waits_in_training_test_and_tuning(given):
    overrides, waiting = given
    out = stage_here("answer", *overrides)
    found = pd.read_parquet(out / "answers.parquet")
    assert set(found["id"]) == set(waiting.loc[waiting["split"].isin(["train", "test", "tune"]), "id"])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["answers"] == len(found)
    assert (found["split"] == "train").any()
    capped = pd.read_parquet(stage_here("answer", *overrides, "answer.prompts={train: 0}") / "answers.parquet")
    assert set(capped["id"]) == set(found.loc[found["split"] != "train", "id"])


def test_utility_is_measured_by_what_the_base_model_said(given):
    overrides, waiting = given
    stage_here("answer", *overrides)
    records = pd.read_parquet(stage_here("evaluate", *overrides, "method=aligned") / "answers.parquet")
    benign = records[(records["split"] == "test") & (records["label"] == "benign")].set_index("id")
    assert benign["utility"].notna().all()
    asked = waiting.loc[waiting["split"] == "test", "id"]
    # Aligned and base model are the same here, and greedy answers are likely.
    assert benign.loc[asked, "utility"].mean() > benign.drop(index=asked)["utility"].mean()


def test_whoever_reads_own_answers_asks_for_them():
    cfg = composed([*GIVEN, "method=aligned"])
    for stage in (align, evaluate, judge):
        assert "answer" in stage.STAGE.inputs(cfg).values()
    assert "answer" not in evaluate.STAGE.inputs(composed(["study=smoke", "method=aligned"])).values()
