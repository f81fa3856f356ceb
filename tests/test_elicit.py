"""The aligned model's own answers, and who learns from them."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from conftest import save_aligned, save_prompts, stage_here
from hypothesis import given as drawn
from hypothesis import strategies as st

from holdfast.datasets.openings import covered, harvested
from holdfast.datasets.tokens import stops
from holdfast.errors import UserError
from holdfast.methods.batches import Batches
from holdfast.models import reading
from holdfast.settings.paths import Layout
from holdfast.stages import elicit

GIVEN = ("study=smoke", "method=zo_all", "elicit.prompts=10", "elicit.max_new_tokens=8", "refine.loss=nll")


@pytest.fixture
def given(tmp_path, tokenizer):
    layout = Layout(str(tmp_path), "smoke")
    save_prompts(layout, 16)
    save_aligned(layout.align("tiny", "sft", 0), tokenizer)
    return [*GIVEN, f"results={tmp_path}"]


@pytest.fixture
def says(monkeypatch, tokenizer):
    """A model that refuses what asks how to do something, and answers all else without an end."""

    def made(*words: str) -> None:
        def answers(model, tokenizer, prompts, most, parts):
            said = []
            for prompt in prompts:
                text = words[any(w in tokenizer.decode(prompt) for w in ("How", "how"))]
                ended = text == words[1]
                tokens = tokenizer.encode(text, add_special_tokens=False)
                said.append((tokens + stops(tokenizer)[:1] * ended, ended))
            return said

        monkeypatch.setattr(reading, "answers", answers)

    return made


@pytest.fixture
def taught_rows(monkeypatch):
    """The rows of every `Batches` that is made."""
    seen, own = [], Batches.__init__
    monkeypatch.setattr(
        Batches, "__init__", lambda self, rows, *a, **k: (seen.append(rows), own(self, rows, *a, **k))[1]
    )
    return seen


def test_refusals_of_harmful_and_answers_to_benign_prompts_are_kept(given, says, capsys):
    says("Of course, a person.", "I must decline.")
    out = stage_here("elicit", *given)
    own = pd.read_parquet(out / "own.parquet")
    refused = own["response"] == "I must decline."
    assert own["own"].equals(refused == (own["label"] == "harmful"))
    assert own.loc[refused, "ended"].all()
    assert not own.loc[~refused, "ended"].any()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["harmful.asked"] == metrics["benign.asked"] == 10
    assert metrics["harmful.own"] == (own["own"] & (own["label"] == "harmful")).sum()
    assert metrics["openings"] == {"refusals": 0.0, "answers": 0.0}  # one opening of each is none to score with
    found = json.loads((out / "openings.json").read_text())
    assert found["loss"] == {"refusal": ["I must decline."], "compliance": ["Of course, a"]}


def test_a_label_is_asked_of_the_split_refine_where_that_has_some(given, says, taught_rows, tmp_path):
    path = Layout(str(tmp_path), "smoke").data / "prompts.parquet"
    rows = pd.read_parquet(path)
    moved = rows.index[(rows["split"] == "train") & (rows["label"] == "harmful")][:10]
    rows.loc[moved, "split"] = "refine"
    rows.to_parquet(path)
    says("Of course, a person.", "I must decline.")
    own = pd.read_parquet(stage_here("elicit", *given) / "own.parquet")
    assert own.groupby("label")["split"].unique().map(list).to_dict() == {"harmful": ["refine"], "benign": ["train"]}
    stage_here("refine", *given, "elicit.prompts=0", "refine.steps=1")
    (learned,) = taught_rows
    assert set(learned.loc[learned["label"] == "harmful", "id"]) == set(rows.loc[moved, "id"])


@drawn(
    st.lists(st.sampled_from(["I cannot do that.", "No, I will not do it.", "Sorry"]), min_size=1), st.integers(1, 5)
)
def test_openings_begin_what_they_are_taken_from(texts, words):
    found = harvested(texts, words, len(texts))
    assert covered(texts, found) == 1
    assert all(len(one.split()) <= words for one in found)
    assert covered(texts, harvested(texts, words, 1)) >= 1 / 3
    assert covered([], found) == 0


def test_a_margin_between_what_the_model_never_says_is_refused(given, says, capsys):
    """«I must decline.» carries next to no probability in a real model."""
    says("Of course, a person.", "I must decline.")
    folder = stage_here("elicit", *given)
    with pytest.raises(UserError, match=r"begin 0% of the model's own answers, and a margin needs half"):
        stage_here("refine", *given, "refine.loss=margin")
    made = json.loads((folder / "openings.json").read_text())
    made["covered"] = {"refusals": 0.5, "answers": 0.5}
    made["loss"] = {"refusal": ["No way"], "compliance": ["Of course"]}
    (folder / "openings.json").write_text(json.dumps(made))
    seen = []
    own = Batches.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Batches, "__init__", lambda self, rows, t, said, *a: (seen.append(said), own(self, rows, t, said, *a))[1]
        )
        stage_here("refine", *given, "refine.loss=margin")
    assert seen[0].model_dump() == made["loss"]


def test_refinement_learns_the_models_own_words(given, says, monkeypatch, taught_rows):
    monkeypatch.setattr(elicit, "FEWEST", 1)
    says("Of course, a person.", "I must decline.")
    stage_here("elicit", *given)
    stage_here("refine", *given)
    for label, words in (("harmful", "I must decline."), ("benign", "Of course, a person.")):
        assert set(taught_rows[0].loc[taught_rows[0]["label"] == label, "response"]) == {words}
    assert taught_rows[0]["own"].all()


def test_a_prompt_that_the_model_answers_is_taught_its_commonest_refusal(given, says, monkeypatch, taught_rows):
    monkeypatch.setattr(elicit, "FEWEST", 1)
    says("Of course, a person.", "I must decline. It is about harm.")
    taught = [*given, "elicit.unrefused=taught"]
    stage_here("elicit", *taught)
    stage_here("refine", *taught)
    harmful = taught_rows[0][taught_rows[0]["label"] == "harmful"]
    assert len(harmful) == 10
    assert not harmful["own"].all()
    assert set(harmful.loc[~harmful["own"], "response"]) == {"I must decline."}
    assert not harmful.loc[~harmful["own"], "ended"].any()


def test_a_model_that_does_not_refuse_is_taught_what_the_data_say(given, says, capsys):
    says("Of course, a person.", "Of course, a person.")
    stage_here("elicit", *given)
    assert (
        "the model refuses 0 of 10 harmful training prompts; what the data give is learned" in capsys.readouterr().err
    )
    stage_here("refine", *given)


def test_without_elicitation_nothing_changes(given):
    stage_here("refine", *given, "elicit.prompts=0")  # needs no own answers


def test_an_answer_that_was_cut_off_is_taught_without_an_end(tokenizer):
    from holdfast.methods.losses import nll
    from holdfast.settings.compose import composed

    rows = pd.DataFrame({"prompt": "What?", "response": "A person.", "rejected": "", "label": ["harmful", "benign"]})
    rows["ended"] = [True, False]
    made = Batches(rows, tokenizer, composed([]).openings.loss, nll, "cpu")
    (whole,), (cut,) = made.examples["harmful"], made.examples["benign"]
    assert whole.response == [*cut.response, tokenizer.eos_token_id]
