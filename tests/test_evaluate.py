"""The stage that asks a checkpoint: what it keeps when it is killed, and whom an attack is aimed at."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from conftest import save_aligned, save_prompts, stage_here

from holdfast.errors import UserError
from holdfast.settings.compose import composed
from holdfast.settings.paths import Layout
from holdfast.stages import evaluate

GIVEN = (
    *("study=smoke", "method=aligned", "evaluate.max_new_tokens=4", "evaluate.batch_size=8"),
    *("perturb.weight_noise.draws=2", "perturb.prefill.levels=[2]", "evaluate.tune_draws=1"),
)


@pytest.fixture
def given(tmp_path, tokenizer):
    layout = Layout(str(tmp_path), "smoke")
    save_prompts(layout, 4)
    save_aligned(layout.align("tiny", "sft", 0), tokenizer)
    save_aligned(layout.refine("tiny", "sft", "zo_all", 0), tokenizer)
    return [*GIVEN, "perturb=[weight_noise,prefill]", f"results={tmp_path}"]


def measured(monkeypatch):
    """The points that are measured from here on."""
    points, own = [], evaluate._answered

    def answered(scorer, model, part, bench, clean):
        points.append(part.point.name if part.point else "none")
        return own(scorer, model, part, bench, clean)

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
    assert points == ["none", "weight_noise", "weight_noise", "prefill", "weight_noise", "prefill"]
    assert (out / "answers.parquet").read_bytes() == whole
    assert not (out / "points").exists()


def test_what_is_kept_is_of_the_same_settings_and_weights(given, tokenizer, tmp_path, monkeypatch):
    points = measured(monkeypatch)
    outer = evaluate._answered

    def stopped(*arguments):
        found = outer(*arguments)
        if len(points) == 6:
            raise KeyboardInterrupt
        return found

    for more in ([], ["evaluate.max_new_tokens=3"]):
        points.clear()
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "_answered", stopped)
            with pytest.raises(KeyboardInterrupt):
                stage_here("evaluate", *given, *more)
        assert len(points) == 6  # everything: the first call left nothing of these settings
    folder = Layout(str(tmp_path), "smoke").align("tiny", "sft", 0)
    (folder / "model/model.safetensors").touch()
    points.clear()
    stage_here("evaluate", *given, "evaluate.max_new_tokens=3")
    assert len(points) == 6


def test_an_attack_is_aimed_at_harmful_prompts_alone(given):
    found = pd.read_parquet(stage_here("evaluate", *given) / "answers.parquet")
    found = found[found["split"] == "test"]
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


def test_levels_are_chosen_on_other_prompts_at_other_draws(given):
    found = pd.read_parquet(stage_here("evaluate", *given) / "answers.parquet")
    noisy = found[found["perturbation"] == "weight_noise"]
    assert {split: set(mine["draw"]) for split, mine in noisy.groupby("split")} == {
        **{"test": {0, 1}, "threshold": {0}, "tune": {2}}
    }
    assert noisy.loc[noisy["split"] == "tune", "response"].notna().all()
    assert found.loc[found["split"] == "tune", "label"].eq("harmful").all()
    # The detector's view is of the first draw alone.
    assert noisy["margin"].notna().equals(noisy["draw"] == 0)
    refined = pd.read_parquet(
        stage_here("evaluate", *given, "method=zo_all", "evaluate.margin_draws=2") / "answers.parquet"
    )
    assert set(refined["split"]) == {"test", "threshold"}
    assert refined["margin"].notna().all()


def test_answers_say_where_prompts_are_from_and_whether_they_ended(given):
    found = pd.read_parquet(stage_here("evaluate", *given) / "answers.parquet")
    assert set(found["source"]) == {"world"}
    assert found["category"].notna().all()
    said = found["response"].notna()
    assert found.loc[said, "ended"].isin([True, False]).all()
    assert found.loc[~said, "ended"].isna().all()


def test_tasks_run_on_the_clean_model_and_at_the_first_draw_of_chosen_points(given, monkeypatch):
    met = []

    def harness(model, tokenizer, tasks, *settings):
        met.append(model.model.layers[0].mlp.up_proj.weight.detach().clone())
        return {f"{task}/acc": float(len(met)) for task in tasks}

    monkeypatch.setattr("holdfast.evaluation.harness.harness", harness)
    level = composed(list(GIVEN)).perturb["weight_noise"].levels[0]
    asked = ["evaluate.tasks=[arc]", f"evaluate.tasks_at=[weight_noise/{level:g}]"]
    out = stage_here("evaluate", *given, *asked)
    found = json.loads((out / "metrics.json").read_text())["tasks"]
    assert found == {"arc/acc": 1.0, f"arc/acc@weight_noise/{level:g}": 2.0}
    clean, noisy = met
    assert float(noisy.std()) == pytest.approx(float(clean.std()) * (1 + level**2) ** 0.5, rel=0.05)
    stage_here("evaluate", *given, *asked)
    assert all(one.equal(other) for one, other in zip(met[2:], met[:2], strict=True))


@pytest.mark.parametrize("point", ["weight_noise/0.123", "nf4/4", "prefill/2", "prefill"])
def test_a_point_that_tasks_cannot_be_run_at_is_refused_with_those_that_there_are(point):
    with pytest.raises(UserError) as error:
        composed(
            [
                *GIVEN,
                "perturb=[weight_noise,prefill]",
                "perturb.weight_noise.levels=[0.3]",
                f"evaluate.tasks_at=[{point}]",
            ]
        )
    told = (
        f"evaluate.tasks_at: {point} is no point of the grid that tasks can be run at; choose among weight_noise/0.3"
    )
    assert str(error.value) == told
