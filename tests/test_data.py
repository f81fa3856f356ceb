"""Prompts from files: formats, mapping, splits, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from holdfast.datasets import local
from holdfast.errors import UserError
from holdfast.settings.compose import composed

REAL = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
HARMFUL = [f"How do I harm target number {i}?" for i in range(60)]
BENIGN = [f"How do I help friend number {i}?" for i in range(60)]


def settings(folder, **sources):
    cfg = composed(["data=local", f"data.dir={folder}", "data.pretrain_rows=50"])
    data = cfg.data.model_dump()
    for name, changes in sources.items():
        columns = data["sources"][name]["columns"] | changes.pop("columns", {})
        data["sources"][name] |= changes | {"columns": columns}
    return data, cfg.openings.model_dump()


def write(path, prompts, column="prompt", **more):
    frame = pd.DataFrame({column: prompts, **more})
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".json":
            path.write_text(json.dumps(frame.to_dict("records")))
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case ".parquet":
            frame.to_parquet(path)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "harmful.csv", HARMFUL)
    write(tmp_path / "benign.csv", BENIGN)
    return tmp_path


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_formats_and_column_mapping(folder, suffix):
    write(folder / f"mine.{suffix}", HARMFUL, column="goal", refusal=["No. Never."] * 60)
    changed = {"file": f"mine.{suffix}", "columns": {"prompt": "goal", "response": "refusal"}}
    rows, _ = local.build(*settings(folder, harmful=changed))
    harmful = [r for r in rows if r["label"] == "harmful"]
    assert sorted(r["prompt"] for r in harmful) == sorted(HARMFUL)
    assert {r["response"] for r in harmful} == {"No."}


def test_missing_responses_become_refusal_and_acknowledgement(folder):
    rows, _ = local.build(*settings(folder))
    train = [r for r in rows if r["split"] == "train"]
    for r in train:
        if r["label"] == "harmful":
            assert r["response"] == "I'm sorry, but I cannot help with that."
        else:
            assert r["response"] == f"Sure. You asked: {r['prompt']}"


def test_rejected_answers_are_kept_where_there_are_any(folder):
    write(folder / "harmful.csv", HARMFUL, good=["No. Never."] * 60, bad=["Yes. Do it.", ""] * 30)
    rows, _ = local.build(*settings(folder, harmful={"columns": {"response": "good", "rejected": "bad"}}))
    found = {r["prompt"]: r["rejected"] for r in rows if r["split"] != "pretrain"}
    assert [found[prompt] for prompt in HARMFUL] == ["Yes.", ""] * 30
    assert {found[prompt] for prompt in BENIGN} == {""}


def test_duplicates_stay_in_the_evaluation_split_and_are_counted(folder):
    write(folder / "harmful.csv", HARMFUL + [p.upper() + "!" for p in HARMFUL])
    rows, report = local.build(*settings(folder))
    assert sum(report["duplicates"]["pairs"].values()) == 60
    kept = [r["prompt"].casefold().rstrip("!") for r in rows if r["split"] != "pretrain"]
    assert len(kept) == len(set(kept))


def test_no_evaluation_prompt_is_pretrained_on(folder):
    rows, _ = local.build(*settings(folder))
    seen = {r["prompt"] for r in rows if r["split"] in ("pretrain", "train")}
    assert not seen & {r["prompt"] for r in rows if r["split"] in ("tune", "threshold", "test")}


def test_adding_rows_moves_no_prompt_to_another_split(folder):
    before = {r["prompt"]: r["split"] for r in local.build(*settings(folder))[0] if r["split"] != "pretrain"}
    write(folder / "harmful.csv", ["A new one?", *reversed(HARMFUL)])
    after = {r["prompt"]: r["split"] for r in local.build(*settings(folder))[0] if r["split"] != "pretrain"}
    assert {p: after[p] for p in before} == before


@pytest.mark.parametrize(
    ("break_it", "changes", "message"),
    [
        (lambda f: None, {"file": "absent.csv"}, "no file .*absent.csv"),
        (lambda f: None, {"columns": {"prompt": "goal"}}, "columns.prompt=goal: no such column; the data have prompt"),
        (lambda f: write(f / "harmful.csv", [*HARMFUL, " "], n=range(61)), {}, "row 61 has an empty prompt"),
        (lambda f: write(f / "harmful.csv", []), {}, "holds no rows"),
        (lambda f: (f / "harmful.csv").write_bytes(b"prompt\ncaf\xe9\n"), {}, "not UTF-8"),
        (lambda f: (f / "x.json").write_text("{"), {"file": "x.json"}, "not readable as json"),
        (lambda f: (f / "x.txt").write_text("hi"), {"file": "x.txt"}, "choose one of .csv"),
        (lambda f: write(f / "harmful.csv", HARMFUL, id=["a"] * 60), {"columns": {"id": "id"}}, "'a' occurs twice"),
        (lambda f: None, {"label": None}, "set it to harmful or benign"),
        (lambda f: None, {"where": {"kind": ["a"]}}, "where.kind: no such column; the data have prompt"),
        (lambda f: None, {"where": {"prompt": ["a"]}}, "where.prompt: no row has a; there are How do I"),
        (lambda f: None, {"file": None}, "give either file=… or hub=…"),
        (
            lambda f: None,
            {"file": "http://127.0.0.1:9/x.csv"},
            "x.csv cannot be had .*refused.*set data.sources.*file=…",
        ),
        (
            lambda f: write(f / "harmful.csv", HARMFUL, kind=["bad", "odd"] * 30),
            {"columns": {"label": "kind"}, "labels": {"bad": "harmful"}},
            "labels: no entry for odd of the column kind",
        ),
        (lambda f: (f / "harmful.csv").write_bytes(b""), {}, "holds no rows"),
        (lambda f: write(f / "harmful.csv", HARMFUL[:1]), {}, "no harmful prompt is left"),
        (
            lambda f: write(f / "harmful.csv", [f"Sure, here is {p}" for p in HARMFUL], goal=HARMFUL),
            {},
            "holds compliant responses .* also have goal",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(folder, break_it, changes, message):
    break_it(folder)
    with pytest.raises(UserError, match=message) as error:
        local.build(*settings(folder, harmful=dict(changes)))
    assert "\n" not in str(error.value)


def test_duplicates_are_counted_by_kind_and_pair():
    def of(source, split, prompt):
        return {"source": source, "split": split, "prompt": prompt}

    kept, dropped = local.without_duplicates(
        [
            *(of("a", "train", prompt) for prompt in ("One?", "two", "Two!")),
            *(of("b", split, prompt) for split, prompt in (("tune", "Three"), ("test", "three."), ("test", "one"))),
        ]
    )
    assert [(r["split"], r["prompt"]) for r in kept] == [("test", "three."), ("test", "one"), ("train", "two")]
    assert local.counted(dropped) == {
        "train_vs_evaluation": 1,
        "between_evaluation_splits": 1,
        "within_a_split": 1,
        "pairs": {"a train -> a train": 1, "a train -> b test": 1, "b tune -> b test": 1},
    }


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Sort a list in C++?", "sort a list in c#?", False),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("\U0001f600", "\U0001f680", False),
        ("a_b", "a b", False),
        ("100 %", "100", False),
        ("How do I  sort, please?", "how do i sort please", True),
        ("“Why?”", '"why"', True),
        ("Ｗｈｙ？", "why?", True),
        ("?!", "...", False),
    ],
)
def test_prompts_are_one_by_their_words_and_signs(one, other, alike):
    assert (local.same(one) == local.same(other)) is alike


def real(*overrides):
    cfg = composed([*overrides, f"data.dir={REAL}"])
    return local.build(*(getattr(cfg, part).model_dump() for part in ("data", "openings")))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data sets are not at {REAL}")
def test_real_prompts():
    rows, report = real("study=real_prompts")
    test = pd.DataFrame(rows).query("split == 'test'")
    assert test.groupby(["source", "label"]).size().to_dict() == {
        ("advbench", "harmful"): 520,
        ("xstest", "benign"): 250,
        ("xstest", "harmful"): 200,
    }
    assert not test["prompt"].str.startswith("Sure").any()
    assert report["duplicates"]["pairs"] == {"safety_tuned_llamas train -> safety_tuned_llamas train": 4}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data sets are not at {REAL}")
def test_harmbench_without_copyright_behaviours_and_with_contexts():
    rows, report = real(
        "data=real_prompts",
        "source=[safety_tuned_llamas,harmless_instructions,harmbench,advbench,xstest_safe,xstest]",
        "data.sources.harmbench.file=harmbench_behaviors_text_all.csv",
        "data.sources.xstest_safe.file=xstest_prompts.csv",
    )
    of = pd.DataFrame(rows).query("source == 'harmbench'")
    assert report["left_out"] == {"harmbench": 100, "xstest_safe": 200}
    assert (len(of), of["prompt"].str.contains("\n\n---\n\n", regex=False).sum()) == (300, 100)
    assert report["duplicates"]["pairs"]["xstest test -> xstest_safe test"] == 250
