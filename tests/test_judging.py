"""The stage that judges saved responses: one referee for all methods, and as many judges as one likes."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch
from conftest import random_llama, save_aligned, save_prompts, stage_here

from holdfast.errors import UserError
from holdfast.judges import COMPLIED, JUDGES, SAFE, Judge
from holdfast.reporting import records as records_of
from holdfast.reporting.records import Evidence
from holdfast.settings.compose import composed
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


class Grades(Judge):
    def ready(self, device="cpu"):
        return Given()


class Given:
    """By turns complied with a score of 0.75, and safe without one."""

    gives_refusals = True

    def verdicts(self, *told):
        return self.scored(*told)[0]

    def scored(self, prompts, responses, labels, reasons):
        turns = [turn % 2 == 0 for turn in range(len(responses))]
        return [COMPLIED if turn else SAFE for turn in turns], [0.75 if turn else math.nan for turn in turns]


@pytest.fixture
def judged(given, tmp_path, monkeypatch):
    """Judged by the rules and by `Grades`."""
    monkeypatch.setitem(JUDGES.kinds, "grades", Grades)
    (tmp_path / "conf/judge").mkdir(parents=True)
    (tmp_path / "conf/judge/grades.yaml").write_text("# @package _global_\njudge: {kind: grades}\n")
    asked = [f"hydra.searchpath=[{tmp_path}/conf]", *given, "study.methods=[aligned,zo_all]", "study.seeds=[0]"]
    for judge in ("rules", "grades"):
        for method in ("aligned", "zo_all"):
            stage_here("judge", *asked, f"method={method}", f"judge={judge}")
    return [*asked, "tables.other_judges=[grades]"]


def evidence(overrides, *more):
    cfg = composed([*overrides, *more])
    return Evidence.of(Layout.of(cfg), cfg)


def test_scores_are_written_beside_the_verdicts(judged, tmp_path):
    layout = Layout(str(tmp_path), "smoke", "grades")
    found = pd.read_parquet(layout.judged("tiny", "sft", "aligned", 0) / "records.parquet")
    assert found["score"].dropna().tolist() == [0.75] * (found["verdict"] == "complied").sum()
    own = pd.read_parquet(layout.by("rules").judged("tiny", "sft", "aligned", 0) / "records.parquet")
    assert own["score"].isna().all()
    assert own["score"].dtype == found["score"].dtype == float


def test_records_hold_what_other_judges_say(judged, tmp_path):
    ours = evidence(judged).frame("records")
    said = ours["verdict"].notna()
    assert ours["verdict:grades"].notna().equals(said)
    assert set(ours["verdict:grades"].dropna()) == {"complied", "safe"}
    assert ours["score:grades"].notna().equals(ours["verdict:grades"] == "complied")
    alone = evidence(judged, "tables.other_judges=[]").frame("records")
    pd.testing.assert_frame_equal(alone, ours.drop(columns=["verdict:grades", "score:grades"]))
    assert "score" not in alone
    pd.testing.assert_frame_equal(alone, evidence(judged, "tables.make=[estimates]").frame("records"))


def test_compact_records_hold_what_other_judges_say(judged, tmp_path, monkeypatch):
    monkeypatch.setattr(records_of, "PARTS", ("records",))
    evidence(judged).write(tmp_path / "compact")
    source = f"tables.source={tmp_path}/compact"
    for others in ("[grades]", "[]"):
        again = [*judged, f"tables.other_judges={others}"]
        pd.testing.assert_frame_equal(evidence(again, source).frame("records"), evidence(again).frame("records"))
    with pytest.raises(UserError, match=r"tables.other_judges=wildguard: .*compact has no verdicts of that judge"):
        evidence(judged, source, "tables.other_judges=[grades,wildguard]").frame("records")


def test_judges_of_unlike_answers_are_not_compared(judged, tmp_path):
    path = Layout(str(tmp_path), "smoke", "grades").judged("tiny", "sft", "aligned", 0) / "records.parquet"
    rows = pd.read_parquet(path)
    rows.loc[rows["response"].notna(), "response"] = "Sure."
    rows.to_parquet(path)
    with pytest.raises(UserError, match=r"is not of the answers that .*judge/rules/aligned.* is of; `holdfast judge"):
        evidence(judged).frame("records")


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
