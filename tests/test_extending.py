"""The page on extending: its files are written as printed, composed, and run."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from holdfast.settings.compose import composed

PAGE = (Path(__file__).resolve().parents[1] / "docs/extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(mine/[\w/]+\.yaml)`:\n\n```yaml\n(.*?)```", PAGE, re.S))
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
    return tmp_path


def overrides(command):
    """What follows `holdfast <stage> --config-dir mine`, in the form that the workflow passes."""
    assert command[2:4] == ["--config-dir", "mine"]
    return ["hydra.searchpath=[mine]", *command[4:]]


def test_every_file_of_the_page_is_used_by_a_command():
    words = {word for command in COMMANDS for word in re.split(r"\W+", " ".join(command))}
    assert {Path(name).stem for name in FILES} <= words
    assert len(FILES) == PAGE.count("```yaml")


@pytest.mark.parametrize("command", STAGES, ids=[c[-1] for c in STAGES])
def test_the_commands_compose(place, command):
    composed(overrides(command))


def test_the_data_set_runs_through_the_data_stage(place, stage):
    folder = place / "my-prompts"
    folder.mkdir()
    for kind in ("harmful", "benign"):
        pd.DataFrame({"prompt": [f"A {kind} prompt, number {n}?" for n in range(60)]}).to_csv(folder / f"{kind}.csv")
    mine = {"question": ["A question?", "A harmful prompt, number 2?", "Eine Frage?"], "language": ["en", "en", "de"]}
    pd.DataFrame(mine).to_csv(folder / "questions.csv")
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
    frame, notes = read("my_pairs", OmegaConf.to_container(composed(overrides(command)).data.sources.my_pairs), ".")
    assert frame[["response", "rejected"]].to_numpy().tolist() == [["A", "a"], ["b", "B"]]
    assert notes == {"left_out": 0}


def test_the_perturbation_is_in_the_grid(place):
    from holdfast.perturbations import grid

    (command,) = (c for c in STAGES if any(word.startswith("perturb=") for word in c))
    points = [p for p in grid(composed(overrides(command)).perturb) if p.name == "fine_rtn"]
    assert [(p.kind, p.level, p.generate) for p in points] == [("rtn", 5, False), ("rtn", 3, True)]
    (level,) = re.findall(r"`'(perturb\.\S+)'`", PAGE)
    assert [p.level for p in grid(composed([level]).perturb) if p.name == "rtn"] == [4, 3, 2]


def test_the_judge_composes_on_top_of_the_rules(place):
    (command,) = (c for c in STAGES if any(word.startswith("judge=") for word in c))
    judge = composed(overrides(command)).judge
    assert (judge.name, judge.kind, judge.path) == ("yes_no", "classifier", "./my-judge")
    assert judge.refusal.openings
    assert "{prompt}" in judge.template
    assert "{response}" in judge.template


def test_the_variant_of_a_method_composes(place):
    (command,) = (c for c in STAGES if c[1] == "refine")
    assert composed(overrides(command)).method.name == "zo_one"


def test_the_new_method_is_a_method(tokenizer):
    import torch
    from conftest import random_llama

    from holdfast.methods import Task

    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    scope: dict = {}
    exec(block, scope)
    model = random_llama(tokenizer)

    def loss(model, ids):
        logits = model(input_ids=ids).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)

    class Endless:
        """In the place of `Batches`."""

        def stream(self, size, seed):
            return itertools.repeat(torch.arange(5, 37).reshape(2, 16))

    settings = OmegaConf.create({"steps": 9, "queries": 1, "batch_size": 2, "first_order_lr": 1.0e-3})
    task = Task(
        model=model,
        loss=loss,
        batches=Endless(),
        layers=["layer.1"],
        method=OmegaConf.create({"share": 1.0}),
        settings=settings,
        seed=0,
        data="",
        origin=lambda: None,
        trajectory=Path("x"),
        source=None,
        progress=iter,
        log=lambda values: None,
    )
    outcome = scope["signs"](task)
    assert outcome.losses[-1] < outcome.losses[0]
    assert outcome.forwards == 18


def test_the_study_composes(place):
    (line,) = (word for command in COMMANDS if command[0] == "snakemake" for word in command if word[:4] == "set=")
    cfg = composed(shlex.split(line[4:]))
    assert list(cfg.study.methods) == ["aligned", "zo_one"]
    assert "fine_rtn" in cfg.perturb
    assert composed([*shlex.split(line[4:]), "method=zo_one"]).method.select.k == 1
    assert composed([*shlex.split(line[4:]), "align=sft_short"]).align.steps == 40
