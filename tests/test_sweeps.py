"""Sweeps by Hydra: their values, jobs that fail, folders, launchers and sweepers; and what each run says of itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY, run_stage, save_aligned, save_prompts
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from holdfast.errors import UserError
from holdfast.settings.compose import composed, read, ready
from holdfast.settings.overrides import expanded, sweep
from holdfast.settings.paths import CONF, Layout

QUICK = ("data.pretrain_rows=20", "tracking=disabled")
BROKEN = """
from holdfast.datasets.options import World
from holdfast.errors import UserError


class Broken(World):
    def build(self, openings):
        if self.pretrain_rows == 21:
            raise UserError("21 is refused")
        return 1 / 0 if self.pretrain_rows == 22 else super().build(openings)
"""
ROWS = ("++data._target_=broken.Broken", "data.pretrain_rows=21,20,22", "tracking=disabled")
SEEN = """
from hydra.experimental.callback import Callback


class Seen(Callback):
    def on_job_end(self, config, job_return, **more):
        print("score", job_return.return_value)
"""


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    return tmp_path


@pytest.fixture
def aligned(tmp_path, tokenizer):
    """What the tuning of an aligned model needs."""
    layout = Layout(str(tmp_path / "results"), "tiny")
    save_prompts(layout, 6)
    save_aligned(layout.align("tiny", "sft", 0), tokenizer)
    save_aligned(layout.pretrain("tiny"), tokenizer)  # the referee's
    return tmp_path


def check_outlived(ended, folder: Path) -> None:
    """Two of the three jobs failed, in one of the ways each, and the third is there."""
    assert ended.returncode == 1
    lines = ended.stderr.strip().splitlines()
    each = ["data.pretrain_rows=21: 21 is refused", "data.pretrain_rows=22: ZeroDivisionError: division by zero"]
    assert lines[-1] == f"holdfast data: 2 of 3 jobs failed: {'; '.join(each)}"
    told = [line for line in lines[:-1] if line.startswith("holdfast data: ++data._target_=broken.Broken ")]
    assert [line.rpartition(": ")[2] for line in told] == ["21 is refused", "division by zero"]
    assert ended.stderr.count("Traceback") == 1
    assert "return 1 / 0" in ended.stderr
    (made,) = folder.glob("multirun/data/*")
    assert [path.parent.name for path in made.rglob("metrics.json")] == ["1"]
    assert not (made / "0").exists()


def test_a_sweep_outlives_its_failed_jobs(broken):
    check_outlived(run_stage("data", "-m", *ROWS, "hydra.sweeper.max_batch_size=1", cwd=broken), broken)


def test_jobs_side_by_side(broken):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launched = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    ended = run_stage("data", "-m", *launched, *ROWS, cwd=broken)
    ended.stderr = "".join(sorted(ended.stderr.splitlines(True), key=lambda line: "jobs failed" in line))
    check_outlived(ended, broken)


def test_jobs_by_submitit(broken):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    ended = run_stage("data", "-m", "hydra/launcher=submitit_local", *ROWS, cwd=broken)
    assert ended.returncode == 1
    each = ["data.pretrain_rows=21: 21 is refused", "data.pretrain_rows=22: ZeroDivisionError: division by zero"]
    assert ended.stderr == f"holdfast data: 2 of 3 jobs failed: {'; '.join(each)}\n"
    assert [path.parent.name for path in broken.rglob("metrics.json")] == ["1"]
    assert not list(broken.glob(".holdfast-*"))


def test_the_values_of_a_sweep_on_the_command_line(tmp_path):
    (tmp_path / "mine/align").mkdir(parents=True)
    (tmp_path / "mine/align/sft_mine.yaml").write_text("# @package _global_\ndefaults: [sft, _self_]\n")
    given = ("method=glob(zo_s*)", "seed=tag(t,range(3,4))", "perturb=choice(rtn)", "align=glob(sft_m*)")
    ended = run_stage(
        "data", "--config-dir", "mine", "-m", *given, "model=shuffle(choice(tiny))", *QUICK, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    jobs = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("run.json"))]
    for method, job in zip(("zo_selective", "zo_sign_shuffled", "zo_singular"), jobs, strict=True):
        chosen = [f"method={method}", "seed=3", "perturb=rtn", "align=sft_mine", "model=tiny"]
        assert job["overrides"] == [f"hydra.searchpath=[{tmp_path}/mine]", *chosen, *QUICK]
        assert job["seed"] == 3


def test_a_glob_finds_files_alone():
    (one,) = expanded(["align=glob(*,exclude=[sft*,sgd])"])
    assert one == "align=choice(dpo,dpo_lora,none,zo)"
    with pytest.raises(UserError, match=r"align=glob\(x\*\): matches none of dpo, "):
        expanded(["align=glob(x*)"])
    with pytest.raises(UserError, match=r"refine.lr=glob\(\*\): matches none of no files"):
        composed(["refine.lr=glob(*)"])


@pytest.mark.parametrize("value", ["choice(rtn,nf4)", "choice([rtn,nf4],[int8])", "[rtn],[my.Class]", "rtn,nf4"])
def test_a_sweep_over_files_stays_as_it_is(value):
    assert expanded([f"perturb={value}"]) == [f"perturb={value}"]


def test_a_sweep_may_be_over_classes_or_models_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    made = "from holdfast.methods.method import Unrefined\n\n\nclass One(Unrefined):\n    pass\n\n\nTwo = One\n"
    (tmp_path / "swept.py").write_text(made)
    jobs = sweep(expanded(["method=swept.One,swept.Two"]))
    assert [composed(job).method.name for job in jobs] == ["swept.One", "swept.Two"]
    jobs = sweep(expanded(["model=choice(some/a,some/b)"]))
    assert [composed(job).model.path for job in jobs] == ["some/a", "some/b"]


def test_of_an_interval_the_ends_are_checked(tmp_path):
    assert sweep(["a=interval(1,2)", "b=1,2"]) == [[a, b] for a in ("a=1.0", "a=2.0") for b in ("b=1", "b=2")]
    drawn = sweep(["hydra/sweeper=optuna", "a=tag(log,interval(1,2))", "b=range(1,4)"])
    assert [job[1:] for job in drawn] == [["a=1.0", "b=1"], ["a=2.0", "b=2"], ["a=2.0", "b=3"]]
    for value, words in {
        "interval(0,1)": "refine.lr=0.0: must be above 0",
        "interval(0.1,1)": "interval(…) is for a sweeper that draws from it; add hydra/sweeper=optuna",
    }.items():
        ended = run_stage("data", "-m", f"refine.lr={value}", *QUICK, cwd=tmp_path)
        assert (ended.returncode, ended.stderr) == (1, f"holdfast data: {words}\n")


def test_what_is_not_installed_is_said(tmp_path):
    ended = run_stage("data", "-m", "hydra/launcher=absent", "seed=0,1", *QUICK, cwd=tmp_path)
    assert ended.stderr.startswith("holdfast data: hydra/launcher=absent: no such choice; choose one of basic")
    assert ended.stderr.count("\n") == 1


def tuned(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    small = ("method=aligned", "perturb=[rtn,magnitude]", "tracking=disabled", "study=tiny")
    return run_stage("tune", "-m", *small, *overrides, cwd=folder)


def test_tune_gives_its_score_to_the_sweeper(aligned):
    from holdfast.commands import tune

    (aligned / "seen.py").write_text(SEEN)
    ended = tuned(aligned, "+hydra.callbacks.seen._target_=seen.Seen", "tables.false_alarms=0.2")
    assert ended.returncode == 0, ended.stderr
    tune.main([f"sweep={aligned / 'multirun'}", f"out={aligned / 'tuning.csv'}"])
    (mean,) = pd.read_csv(aligned / "tuning.csv")["mean asr"]
    assert float(ended.stdout.split()[-1]) == pytest.approx(mean, rel=1e-3)


def test_optuna_draws_from_intervals_and_finds_the_lowest_score(aligned):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    drawn = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
    ended = tuned(aligned, *drawn, "tables.false_alarms=tag(log,interval(0.05,0.5))")
    assert ended.returncode == 0, ended.stderr
    (made,) = aligned.glob("multirun/tune/*")
    found = OmegaConf.load(made / "optimization_results.yaml")
    jobs = [OmegaConf.load(path).tables.false_alarms for path in made.rglob("config.yaml")]
    assert found.best_params["tables.false_alarms"] in jobs
    ended = run_stage("data", "-m", *drawn, "seed=0,1", *QUICK, cwd=aligned)
    assert ended.stderr.splitlines()[-1].startswith("holdfast data: no job has a score to optimise")


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    class Still(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 31, 12)

    monkeypatch.setattr("hydra.core.utils.datetime", Still)
    monkeypatch.chdir(tmp_path)
    ready()

    def folder(mode: str) -> str:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            own = compose("config", return_hydra_config=True).hydra[mode]
        assert own.dir == own.dir
        return Path(own.dir).name

    for mode in ("run", "sweep"):
        assert [folder(mode) for _ in range(3)] == [f"2026-01-31_12-00-00{more}" for more in ("", "_2", "_3")]


def test_a_run_holds_its_whole_configuration_and_what_it_was_made_by(tmp_path):
    given = ("study=smoke", "seed=3", "refine.lr=0.5", *QUICK)
    assert run_stage("data", *given, "hydra.run.dir=made", cwd=tmp_path).returncode == 0
    written = OmegaConf.to_container(OmegaConf.load(tmp_path / "made/config.yaml"))
    assert read(written).as_dict() == composed([*given]).as_dict()
    made = json.loads((tmp_path / "made/run.json").read_text())
    assert (made["overrides"], made["seed"]) == (list(given), 3)
    assert set(made["versions"]) == {"holdfast", "torch", "transformers"}
    assert all(made["versions"].values())
    if (REPOSITORY / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout
        assert made["commit"] == head.strip()
        assert isinstance(made["dirty"], bool)


def test_the_commit_is_that_of_the_package(tmp_path):
    """An installed copy that lies in somebody's checkout has none."""
    shutil.copytree(REPOSITORY / "src/holdfast", tmp_path / "src/holdfast")
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@example.org"]
    command = [sys.executable, "-c", "from holdfast.runtime.origin import Origin; print(Origin.of(None, []).code)"]

    def told() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout.strip()

    assert told() == str({"commit": None, "dirty": None})
    (tmp_path / "mine.txt").write_text("mine")
    for words in (["init", "-q"], ["add", "mine.txt"], ["commit", "-qm", "mine"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    assert told() == str({"commit": None, "dirty": None})
    for words in (["add", "src"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    assert "'dirty': False" in told()
    (tmp_path / "mine.txt").write_text("other")
    assert "'dirty': True" in told()
