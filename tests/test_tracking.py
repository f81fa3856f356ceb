"""What a stage tells W&B when it is online, to a run that writes down what it is told."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import REPOSITORY, run_stage

from holdfast.runtime.tracking import Tracker
from holdfast.settings.compose import composed


class Recorder:
    """In the place of a W&B run."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.summary, self.id = settings, {}, settings["id"]
        self.used: list[Any] = []
        self.kept: list[Any] = []
        self.history: list[tuple[int, dict[str, Any]]] = []

    def use_artifact(self, artifact: Any) -> None:
        self.used.append(artifact)

    def log_artifact(self, artifact: Any) -> None:
        self.kept.append(artifact)

    def log(self, values: dict[str, Any], step: int) -> None:
        self.history.append((step, values))

    def finish(self, exit_code: int = 0) -> None:
        self.settings["ended"] = exit_code


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Start the tracker of a refinement whose inputs lie in `tmp_path`."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", lambda **settings: Recorder(**settings))
    aligned, out = (tmp_path / "tiny/tiny/sft" / part / "s0" for part in ("align", "refine/zo_all"))
    for folder in (aligned, out):
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text("{}")
    (out / "trajectory.jsonl").write_text("{}\n")

    def start(mode: str, steps: int = 2) -> Tracker:
        cfg = composed([f"tracking={mode}", f"results={tmp_path}", "method=zo_all", f"tracking.dir={tmp_path}"])
        config = {"refine": {"steps": steps}, "method": {"name": "zo_all"}}
        inputs = {aligned / "metrics.json": "align", tmp_path / "nowhere/metrics.json": "probe"}
        return Tracker(cfg, "refine", "tiny/tiny/sft/zo_all/s0", config, out, inputs)

    return start


def test_a_run_online_continues_and_says_what_it_used(begin):
    first, second = begin("online").run, begin("online").run
    assert first.settings["id"] == second.settings["id"]
    assert first.settings["resume"] == "allow"
    assert [(a.name, a.type) for a in first.used] == [("tiny-tiny-sft-align-s0", "align")]
    assert first.settings["group"] == "tiny/tiny"
    assert first.settings["job_type"] == "refine"
    assert first.settings["tags"] == ["sft", "zo_all", "s0"]
    assert first.settings["config"] == {"refine.steps": 2, "method.name": "zo_all", "method_name": "zo_all", "seed": 0}


def test_steps_are_counted_so_that_a_repeated_one_is_known(begin):
    tracker = begin("online")
    for loss in (2.0, 1.0):
        tracker.log({"loss": loss})
    assert tracker.run.history == [(0, {"loss": 2.0}), (1, {"loss": 1.0})]


def test_the_end_of_a_run(begin):
    tracker = begin("online")
    tracker.finish({"loss": [2.0, 1.0], "layers": ["layer.0", "layer.1"], "clean/asr": 0.1, "tasks": {"mmlu": 0.3}})
    run = tracker.run
    assert run.summary == {"layers": "layer.0, layer.1", "clean/asr": 0.1, "tasks.mmlu": 0.3}
    (made,) = run.kept
    assert made.name == "tiny-tiny-sft-refine-zo_all-s0"
    assert set(made.manifest.entries) == {"metrics.json", "trajectory.jsonl"}
    assert set(made.metadata["inputs"]) == {"tiny-tiny-sft-align-s0"}
    assert run.settings["ended"] == 0


def test_disabled_does_nothing(begin):
    tracker = begin("disabled")
    tracker.log({"loss": 1.0})
    tracker.finish({"loss": 1.0})
    tracker.fail()
    assert tracker.run is None


OUT = "tiny/tiny/sft/refine/zo_all/s0"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_other_settings_or_another_folder_at_the_same_path_make_another_run(begin, tmp_path, mode):
    first = begin(mode).run.id
    assert begin(mode).run.id == first
    changed = begin(mode, steps=3).run.id
    assert changed != first
    assert begin(mode, steps=3).run.id == changed
    shutil.rmtree(tmp_path / OUT)  # as in another container
    (tmp_path / OUT).mkdir()
    assert begin(mode, steps=3).run.id not in (first, changed)


def test_offline_a_run_is_replaced_by_one_of_the_same_settings_alone(begin, tmp_path):
    kept = tmp_path / "wandb" / f"offline-run-20260131_120000-{begin('offline').run.id}"
    kept.mkdir(parents=True)
    assert begin("offline", steps=3).run
    assert kept.exists()
    assert begin("offline", steps=2).run
    assert kept.exists()
    kept = kept.rename(kept.with_name(f"offline-run-20260131_120000-{begin('offline').run.id}"))
    tracker = begin("offline")
    assert kept.exists()  # until there is something to log
    tracker.log({"loss": 1.0})
    assert not kept.exists()


def test_a_run_that_was_deleted_is_made_again(begin, monkeypatch):
    import wandb

    deleted = begin("online").run.id

    def init(**settings: Any) -> Recorder:
        if settings["id"] == deleted:
            said = f"HTTP 409: run me/holdfast/{deleted} was previously created and deleted; try a new run id"
            raise wandb.errors.CommError(f"Timed out while retrying: {said}\nConsider increasing the init_timeout")
        return Recorder(**settings)

    monkeypatch.setattr(wandb, "init", init)
    again = begin("online").run
    assert again.id != deleted
    assert (again.settings["resume"], again.settings["config"]["refine.steps"]) == ("allow", 2)
    assert begin("online").run.id == again.id


def test_what_failed_and_left_nothing_leaves_no_id(begin, tmp_path):
    begin("online").fail()
    assert (tmp_path / OUT / "wandb.json").exists()  # its metrics are there
    for path in (tmp_path / OUT).iterdir():
        path.unlink()
    begin("online").fail()
    assert not list((tmp_path / OUT).iterdir())


def test_a_stage_that_fails_leaves_its_offline_run_alone(tmp_path):
    ended = run_stage("data", "data=local", "data.dir=nowhere", "tracking=offline", cwd=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]


def test_the_commit_is_noted_and_no_code(begin):
    settings = begin("online").run.settings["settings"]
    assert (settings.disable_git, settings.disable_code) == (False, True)


@pytest.mark.parametrize("stage", ["data", "probe", "evaluate"])
def test_a_run_has_the_settings_of_the_stages_before_it(stage, tmp_path, monkeypatch):
    import importlib

    import wandb

    told: dict[str, Any] = {}

    def init(**settings: Any) -> None:
        told.update(settings["config"])
        raise wandb.errors.CommError("enough is known")

    for folder in ("data", "tiny/pretrain", "tiny/sft/align/s0", "tiny/sft/refine/zo_all/s0"):
        (tmp_path / "results/tiny" / folder).mkdir(parents=True)
        (tmp_path / "results/tiny" / folder / "metrics.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(sys, "argv", ["holdfast"])
    for name in ("HYDRA_MAIN_MODULE", "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "")
    with pytest.raises(SystemExit, match="enough is known"):
        importlib.import_module(f"holdfast.stages.{stage}").STAGE.main(
            ["method=zo_all", "refine.lr=0.5", "tracking=online"]
        )
    found = {key.partition(".")[0] for key in told}
    read = {"data": {"data", "openings"}, "probe": {"model", "pretrain", "align", "probe"}}
    read["evaluate"] = {*read["probe"], *read["data"], "method", "refine", "perturb", "evaluate"}
    assert found - {"seed"} >= read[stage]
    assert not found & {"study", "tables", "claims", "plan", "tracking"}
    assert not Path("outputs").exists()
    if stage == "evaluate":
        assert (told["refine.lr"], told["method.name"], told["align.name"]) == (0.5, "zo_all", "sft")
    else:
        assert not found & {"refine", "method", "evaluate"}


def test_a_workspace_shows_what_runs_have(monkeypatch):
    """Its panels are of keys that a judged run's summary has, and of the setting that a run is grouped by."""
    from holdfast.commands import workspace
    from holdfast.settings.compose import composed
    from holdfast.statistics.rates import summarized

    cfg = composed(["study=smollm2"])
    records = pd.read_parquet(REPOSITORY / "docs/evidence/smollm2/records.parquet")
    has = summarized(records[records["method"] == "aligned"])
    model = workspace.workspace(cfg, "us")._to_model()
    sections = json.loads(model.model_dump_json(by_alias=True))["spec"]["section"]["panelBankConfig"]["sections"]
    bars = [panel["config"] for one in sections[:3] for panel in one["panels"]]
    asked = {bar["metrics"][0].removeprefix("summary_metrics.") for bar in bars}
    assert asked == {key for key in has if key.split("/")[-1] in ("asr", "over_refusal", "broken_benign", "utility")}
    assert {bar["groupBy"] for bar in bars} == {"method_name.value"}


def test_a_workspace_needs_a_login(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    ended = stage("workspace", "study=smoke")
    assert ended.returncode == 1
    assert ended.stderr.startswith("holdfast workspace: W&B: ")
    assert "wandb login" in ended.stderr
    assert ended.stderr.count("\n") == 1
