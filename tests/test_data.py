"""Prompts from files: formats, mapping, splits, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from holdfast.compose import composed
from holdfast.datasets import local
from holdfast.errors import UserError

REAL = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
HARMFUL = [f"How do I harm target number {i}?" for i in range(60)]
BENIGN = [f"How do I help friend number {i}?" for i in range(60)]


def settings(folder, **sources):
    cfg = composed(["data=local", f"data.dir={folder}", "data.pretrain_rows=50"])
    data = OmegaConf.to_container(cfg.data)
    for name, changes in sources.items():
        columns = data["sources"][name]["columns"] | changes.pop("columns", {})
        data["sources"][name] |= changes | {"columns": columns}
    return data, OmegaConf.to_container(cfg.openings)


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


def test_duplicates_stay_in_the_evaluation_split_and_are_counted(folder):
    write(folder / "harmful.csv", HARMFUL + [p.upper() + "!" for p in HARMFUL])
    rows, dropped = local.build(*settings(folder))
    assert dropped == {"duplicates_dropped": 60}
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
        (lambda f: None, {"columns": {"prompt": "goal"}}, "columns.prompt=goal: no such column; the file has prompt"),
        (lambda f: write(f / "harmful.csv", [*HARMFUL, " "], n=range(61)), {}, "row 61 has an empty prompt"),
        (lambda f: write(f / "harmful.csv", []), {}, "holds no rows"),
        (lambda f: (f / "harmful.csv").write_bytes(b"prompt\ncaf\xe9\n"), {}, "not UTF-8"),
        (lambda f: (f / "x.json").write_text("{"), {"file": "x.json"}, "not readable as json"),
        (lambda f: (f / "x.txt").write_text("hi"), {"file": "x.txt"}, "choose one of .csv"),
        (lambda f: write(f / "harmful.csv", HARMFUL, id=["a"] * 60), {"columns": {"id": "id"}}, "'a' occurs twice"),
        (lambda f: None, {"label": None}, "set it to harmful or benign"),
        (lambda f: write(f / "harmful.csv", HARMFUL[:1]), {}, "no harmful prompt is left"),
        (
            lambda f: write(f / "harmful.csv", [f"Sure, here is {p}" for p in HARMFUL], goal=HARMFUL),
            {},
            "holds compliant responses .* also has goal",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(folder, break_it, changes, message):
    break_it(folder)
    with pytest.raises(UserError, match=message) as error:
        local.build(*settings(folder, harmful=dict(changes)))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data sets are not at {REAL}")
def test_real_prompts():
    cfg = composed(["study=real_prompts", f"data.dir={REAL}"])
    data, openings = (OmegaConf.to_container(cfg[part]) for part in ("data", "openings"))
    rows, dropped = local.build(data, openings)
    test = pd.DataFrame(rows).query("split == 'test'")
    assert dropped["duplicates_dropped"] > 0
    assert test.groupby(["source", "label"]).size().to_dict() == {
        ("advbench", "harmful"): 520,
        ("xstest", "benign"): 250,
        ("xstest", "harmful"): 200,
    }
    assert not test["prompt"].str.startswith("Sure").any()
