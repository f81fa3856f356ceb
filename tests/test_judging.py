"""The stage that judges saved responses: one referee for all methods, and as many judges as one likes."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from conftest import random_llama, save_aligned, save_prompts, stage_here

from holdfast.settings.paths import Layout
from holdfast.stages import evaluate

GIVEN = (
    *("study=smoke", "evaluate.max_new_tokens=4", "evaluate.batch_size=8", "perturb=[weight_noise]"),
    *("perturb.weight_noise.levels=[0.5]", "perturb.weight_noise.draws=1", "perturb.weight_noise.generate=null"),
)


@pytest.fixture
def given(tmp_path, tokenizer):
    """Two checkpoints, answered, and the base model that they are of."""
    layout = Layout(str(tmp_path), "smoke")
    save_prompts(layout, 6)
    save_aligned(layout.align("tiny", "sft", 0), tokenizer)
    refined = layout.refine("tiny", "sft", "zo_all", 0)
    save_aligned(refined, tokenizer)
    other = random_llama(tokenizer)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(-3)
    other.save_pretrained(refined / "model")
    save_aligned(layout.pretrain("tiny"), tokenizer)
    for method in ("aligned", "zo_all"):
        stage_here("evaluate", *GIVEN, f"results={tmp_path}", f"method={method}")
    return [*GIVEN, f"results={tmp_path}"]


def records(given, *more):
    return pd.read_parquet(stage_here("judge", *given, *more) / "records.parquet")


def test_another_judge_reads_the_same_responses(given, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_answered", None)  # nothing is generated again
    one = records(given, "method=aligned")
    (tmp_path / "always.py").write_text(ALWAYS)
    monkeypatch.chdir(tmp_path)
    other = records(given, "method=aligned", "judge=always.Always")
    assert one["response"].equals(other["response"])
    assert one["nll"].equals(other["nll"])
    assert set(other["verdict"].dropna()) == {"complied"}
    assert records(given, "method=aligned")["verdict"].equals(one["verdict"])


ALWAYS = """
from holdfast.judges import COMPLIED, Judge


class Always(Judge):
    gives_refusals = property(lambda self: True)

    def ready(self, device="cpu"):
        return self

    def verdicts(self, prompts, responses, labels, reasons):
        return [COMPLIED] * len(responses)
"""


def test_every_response_has_a_verdict_a_reason_and_a_likelihood(given):
    found = records(given, "method=aligned")
    said = found["response"].notna()
    assert found.loc[said, ["verdict", "reason", "nll"]].notna().all(axis=None)
    assert found.loc[~said, ["verdict", "reason", "nll"]].isna().all(axis=None)
    assert set(found.loc[said, "verdict"]) <= {"refused", "partial", "complied", "broken"}


def test_one_referee_for_all_methods(given, tmp_path):
    """What two checkpoints say alike is as likely, whoever says it, and as broken."""
    ceilings, found = set(), []
    for method in ("aligned", "zo_all"):
        folder = stage_here("judge", *given, f"method={method}")
        ceilings.add(json.loads((folder / "metrics.json").read_text())["ceiling"])
        found.append(pd.read_parquet(folder / "records.parquet").dropna(subset="response"))
    assert len(ceilings) == 1
    both = pd.concat(found).groupby(["id", "response", "ended"])[["nll", "reason"]].nunique()
    assert (both["reason"] == 1).all()
    assert found[0]["response"].tolist() != found[1]["response"].tolist()


def test_an_answer_that_was_cut_off_is_not_charged_an_end(given, tmp_path):
    answers = Layout(str(tmp_path), "smoke").evaluate("tiny", "sft", "aligned", 0) / "answers.parquet"
    rows = pd.read_parquet(answers)
    said = rows["response"].notna()
    rows.loc[said, "response"], rows.loc[said, "ended"] = "Sure. Use it.", False
    rows.to_parquet(answers)
    cut = records(given, "method=aligned")["nll"]
    rows.loc[said, "ended"] = True
    rows.to_parquet(answers)
    assert (records(given, "method=aligned")["nll"][said] != cut[said]).all()
