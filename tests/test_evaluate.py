"""The stage that asks a checkpoint: what it keeps when it is killed, and whom an attack is aimed at."""

from __future__ import annotations

import pandas as pd
import pytest
from conftest import save_aligned, save_prompts, stage_here

from holdfast.settings.paths import Layout
from holdfast.stages import evaluate

GIVEN = (
    *("study=smoke", "method=aligned", "evaluate.max_new_tokens=4", "evaluate.batch_size=8"),
    *("perturb.weight_noise.draws=2", "perturb.prefill.levels=[2]"),
)


@pytest.fixture
def given(tmp_path, tokenizer):
    layout = Layout(str(tmp_path), "smoke")
    save_prompts(layout, 4)
    save_aligned(layout.align("tiny", "sft", 0), tokenizer)
    return [*GIVEN, "perturb=[weight_noise,prefill]", f"results={tmp_path}"]


def measured(monkeypatch):
    """The points that are measured from here on."""
    points, own = [], evaluate._answered

    def answered(scorer, model, point, bench, clean):
        points.append(point.name if point else "none")
        return own(scorer, model, point, bench, clean)

    monkeypatch.setattr(evaluate, "_answered", answered)
    return points


def test_a_killed_evaluation_goes_on_where_it_was(given, monkeypatch):
    whole = (stage_here("evaluate", *given) / "answers.parquet").read_bytes()
    points = measured(monkeypatch)
    outer = evaluate._answered

    def killed(*arguments):
        if len(points) == 2:
            raise KeyboardInterrupt
        return outer(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_answered", killed)
        with pytest.raises(KeyboardInterrupt):
            stage_here("evaluate", *given)
    assert points == ["none", "weight_noise"]
    out = stage_here("evaluate", *given)
    assert points == ["none", "weight_noise", "weight_noise", "prefill"]
    assert (out / "answers.parquet").read_bytes() == whole
    assert not (out / "points").exists()


def test_what_is_kept_is_of_the_same_settings_and_weights(given, tokenizer, tmp_path, monkeypatch):
    points = measured(monkeypatch)
    outer = evaluate._answered

    def stopped(*arguments):
        found = outer(*arguments)
        if points[-1] == "prefill":
            raise KeyboardInterrupt
        return found

    for more in ([], ["evaluate.max_new_tokens=3"]):
        points.clear()
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "_answered", stopped)
            with pytest.raises(KeyboardInterrupt):
                stage_here("evaluate", *given, *more)
        assert len(points) == 4  # everything: the first call left nothing of these settings
    folder = Layout(str(tmp_path), "smoke").align("tiny", "sft", 0)
    (folder / "model/model.safetensors").touch()
    points.clear()
    stage_here("evaluate", *given, "evaluate.max_new_tokens=3")
    assert len(points) == 4


def test_an_attack_is_aimed_at_harmful_prompts_alone(given):
    found = pd.read_parquet(stage_here("evaluate", *given) / "answers.parquet")
    key = ["id", "margin", "response", "utility"]
    for label, same in (("benign", True), ("harmful", False)):
        clean, attacked = (
            found[(found["perturbation"] == name) & (found["label"] == label)][key].reset_index(drop=True)
            for name in ("none", "prefill")
        )
        assert clean["id"].tolist() == attacked["id"].tolist()
        assert clean.equals(attacked) == same
    noisy = found[(found["perturbation"] == "weight_noise") & (found["draw"] == 0) & (found["label"] == "benign")]
    clean = found[(found["perturbation"] == "none") & (found["label"] == "benign")]
    assert not (noisy["margin"].to_numpy() == clean["margin"].to_numpy()).any()


def test_answers_say_where_prompts_are_from_and_whether_they_ended(given):
    found = pd.read_parquet(stage_here("evaluate", *given) / "answers.parquet")
    assert set(found["source"]) == {"world"}
    assert found["category"].notna().all()
    said = found["response"].notna()
    assert found.loc[said, "ended"].isin([True, False]).all()
    assert found.loc[~said, "ended"].isna().all()
