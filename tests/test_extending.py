"""The page on extending: its files are written as printed, composed, and run in one study from outside the package."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import random_llama

from holdfast.settings.compose import composed

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w/]+\.(?:yaml|py))`:\n\n```(?:yaml|python)\n(.*?)```", PAGE, re.S))
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    for line in block.replace("\\\n", " ").splitlines()
]
STAGES = [command for command in COMMANDS if command[0] == "holdfast"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the page's files in it, and nothing of the repository's."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def prompts(place):
    folder = place / "my-prompts"
    folder.mkdir()
    for kind in ("harmful", "benign"):
        pd.DataFrame({"prompt": [f"A {kind} prompt, number {n}?" for n in range(60)]}).to_csv(folder / f"{kind}.csv")
    mine = {"question": ["A question?", "A harmful prompt, number 2?", "Eine Frage?"], "language": ["en", "en", "de"]}
    pd.DataFrame(mine).to_csv(folder / "questions.csv")


def overrides(command):
    """What follows `holdfast <stage>`, in the form that the workflow passes."""
    words = command[2:]
    return ["hydra.searchpath=[mine]", *words[2:]] if words[0] == "--config-dir" else words


def test_every_file_of_the_page_is_used():
    used = {word for command in COMMANDS for word in re.split(r"\W+", " ".join(command))}
    used |= set(re.split(r"\W+", FILES["mine/study/all_of_it.yaml"]))
    assert {Path(name).stem for name in FILES} <= used
    assert len(FILES) == PAGE.count("```yaml") + PAGE.count("```python")


@pytest.mark.parametrize("command", STAGES, ids=[c[-1] for c in STAGES])
def test_the_commands_compose(place, command):
    composed(overrides(command))


def test_the_data_set_runs_through_the_data_stage(place, prompts, stage):
    (command,) = (c for c in STAGES if "my_set" in c[-1])
    quick = ("data.pretrain_rows=20", "tracking=disabled", "hydra.run.dir=made")
    ended = stage("data", *command[2:], *quick, cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert "Left out of my_set by its filter: 1 rows." in ended.stdout
    rows = pd.read_parquet(place / "made/prompts.parquet")
    assert set(rows[rows["source"] == "my_set"]["split"]) == {"test"}


def test_the_pairs_are_read(place):
    from holdfast.datasets.sources import read

    pairs = {"question": ["A?", "B?"], "answer_0": ["a", "b"], "answer_1": ["A", "B"], "safer": [1, 0]}
    pd.DataFrame(pairs | {"safe_0": True, "safe_1": [True, False]}).to_csv("pairs.csv")
    (command,) = (c for c in STAGES if "my_pairs" in c[-1])
    frame, notes = read("my_pairs", composed(overrides(command)).data.sources["my_pairs"].model_dump(), ".")
    assert frame[["response", "rejected"]].to_numpy().tolist() == [["A", "a"], ["b", "B"]]
    assert notes == {"left_out": 0}


def test_the_perturbation_is_in_the_grid(place):
    from holdfast.perturbations import grid

    (command,) = (c for c in STAGES if "fine_rtn" in c[-1])
    points = [p for p in grid(composed(overrides(command)).perturb) if p.name == "fine_rtn"]
    assert [(p.perturbation.kind, p.level, p.generate) for p in points] == [("rtn", 5, False), ("rtn", 3, True)]
    (level,) = re.findall(r"`'(perturb\.\S+)'`", PAGE)
    levels = [p.level for p in grid(composed([level]).perturb) if p.name == "rtn"]
    assert list(dict.fromkeys(levels)) == [4, 3, 2]


def test_a_judge_composes_on_top_of_the_rules(place):
    (command,) = (c for c in STAGES if "judge=yes_no" in c)
    judge = composed(overrides(command)).judge
    assert (judge.name, judge.kind, judge.path) == ("yes_no", "classifier", "./my-judge")
    assert judge.refusal.openings
    assert "{response}" in judge.template


def test_a_variant_of_a_method_keeps_its_own_values(place):
    method = composed(["hydra.searchpath=[mine]", "method=zo_one", "refine.lr=0.5", "refine.mu=0.3"]).method
    assert (method.name, method.select.k, method.lr, method.mu) == ("zo_one", 1, 0.01, 0.3)


def test_what_is_no_class_of_options_is_refused(place):
    from holdfast.errors import UserError

    for override, words in {
        "method=signs.Absent": "method._target_=signs.Absent: signs.Absent: cannot be imported",
        "method=hinge.hinge": "method._target_=hinge.hinge: is no class of options",
        "refine.loss=absent.loss": "refine.loss=absent.loss: absent.loss: cannot be imported",
    }.items():
        with pytest.raises(UserError, match=re.escape(words)):
            composed([override])
    with pytest.raises(UserError, match=re.escape("method.lr=-1: must be above 0")):
        composed(["method=signs.Signs", "method.lr=-1"])


def test_all_of_it_runs_in_a_study(place, prompts, tokenizer):
    """A method, a perturbation, a judge, a loss, a model, a data set, a recipe and a table, none of them of the
    package."""
    random_llama(tokenizer).save_pretrained("small-model")
    tokenizer.save_pretrained("small-model")
    (command,) = (c for c in COMMANDS if c[0] == "snakemake")
    command = [sys.executable, "-m", *command, "--snakefile", str(ROOT / "Snakefile")]
    at = next(place for place, word in enumerate(command) if word.startswith("set="))
    command[at] += " data.pretrain_rows=20 tracking=disabled"
    ended = subprocess.run([*command, "--quiet", "all"], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    run = "small/sft_short"
    records = pd.read_parquet(f"results/all_of_it/{run}/judge/words.FirstWord/signs.Signs/s0/records.parquet")
    assert {"none", "weight_noise", "rtn", "fine_rtn", "Ternary"} == set(records["perturbation"])
    assert set(records["ran"][records["perturbation"] == "Ternary"]) == {"simulated"}
    assert set(records["verdict"].dropna()) <= {"refused", "complied", "broken"}
    table = pd.read_csv("results/tables/all_of_it/by_label.csv")
    assert set(table["method"]) == {"aligned", "zo_one", "signs.Signs"}
    said = records["verdict"].notna() & (records["split"] == "test")
    assert table["responses"].sum() == 3 * said.sum()
    assert "# Data card: local" in Path("results/all_of_it/data/log.txt").read_text()
    assert '"loss": "hinge.hinge"' in Path(f"results/all_of_it/{run}/refine/zo_one/s0/trajectory.jsonl").read_text()
    # What the study was made of, outside the package too, is watched.
    for path, stage in {
        "my-prompts/harmful.csv": "data",
        "small-model/config.json": "align",
        "signs.py": "refine",
    }.items():
        text, before = Path(path).read_text(), Path(path).stat().st_mtime
        Path(path).write_text(text + ("60,Another harmful prompt?\n" if path.endswith("csv") else "\n"))
        assert re.search(rf"^{stage} +[0-9]", planned(command), re.M)
        Path(path).write_text(text)
        os.utime(path, (before, before))
    assert "Nothing to be done" in (again := planned(command)), again


def planned(command):
    ended = subprocess.run([*command, "-n"], capture_output=True, text=True, timeout=120)
    return ended.stdout + ended.stderr
