"""What a stage tells W&B when it is online, to a run that writes down what it is told."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.runtime.tracking import Tracker
from holdfast.settings.compose import composed


class Recorder:
    """In the place of a W&B run."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.summary = settings, {}
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

    def start(mode: str) -> Tracker:
        cfg = composed([f"tracking={mode}", f"results={tmp_path}", "method=zo_all"])
        config = {"refine": {"steps": 2}, "method": {"name": "zo_all"}}
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
    assert first.settings["config"] == {"refine.steps": 2, "method.name": "zo_all", "seed": 0}


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
