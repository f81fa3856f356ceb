"""Probe, refinement and evaluation as several processes of torchrun: the bytes of one, and a line when one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, save_aligned, save_prompts

from holdfast.settings.paths import Layout

MADE = {"probe": "sensitivity.parquet online.parquet outcomes.parquet metrics.json"}
MADE |= {"refine": "trajectory.jsonl model/model.safetensors metrics.json", "evaluate": "answers.parquet metrics.json"}
GIVEN = ("study=smoke", "tracking=disabled", "method=zo_all", "model.threads=1")
STAGES = {
    "probe": ("probe.compare=[together,activations,quantization]", "probe.draws=4", "probe.keep=1", "probe.prompts=8"),
    "refine": ("refine.steps=4", "refine.queries=3"),
    "evaluate": ("method=aligned", "perturb=[weight_noise,prefill]", "evaluate.max_new_tokens=4"),
}


@pytest.fixture
def given(tmp_path, tokenizer):
    layout = Layout(str(tmp_path), "smoke")
    save_prompts(layout, 4)
    save_aligned(layout.align("tiny", "sft", 0), tokenizer)
    return [*GIVEN, f"results={tmp_path}"]


def started(stage: str, size: int, *words: str) -> subprocess.Popen[str]:
    """As the workflow starts a job."""
    command = [sys.executable, "-m", "holdfast.runtime.warm", stage, *words]
    own = {"HOLDFAST_WARM": "", "HOLDFAST_PROCESSES": str(size), "OMP_NUM_THREADS": str(size)}
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | own, stdout=-1, stderr=-1, text=True)


def ended(stage: str, size: int, *words: str) -> str:
    running = started(stage, size, *words)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    return said


def made(stage: str, out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in MADE[stage].split()}


@pytest.mark.parametrize("stage", STAGES)
def test_several_processes_make_the_bytes_of_one_and_one_of_them_speaks(given, tmp_path, stage):
    found = {}
    for size in (1, 2):
        out = tmp_path / f"by-{size}"
        said = ended(stage, size, *given, *STAGES[stage], f"hydra.run.dir={out}")
        assert said.count("done in") == 1
        found[size] = made(stage, out)
    assert found[1] == found[2]


def test_a_killed_rank_stops_the_run_with_one_line_and_the_next_call_goes_on(given, tmp_path):
    words = [*given, "refine.steps=60", "refine.queries=4", "refine.batch_size=16"]
    whole, out = tmp_path / "whole", tmp_path / "lost"
    ended("refine", 1, *words, f"hydra.run.dir={whole}")
    running = started("refine", 2, *words, f"hydra.run.dir={out}")
    log = out / "trajectory.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") > 4):
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    os.kill(rank_of(running.pid, 1), signal.SIGKILL)
    _, said = running.communicate(timeout=60)
    assert running.returncode != 0
    assert [line for line in said.splitlines() if " step " not in line] == [
        "holdfast refine: one of 2 processes has ended; call it again, and it goes on"
    ]
    before = log.read_bytes()
    assert 4 < before.count(b"\n") < 60
    ended("refine", 2, *words, f"hydra.run.dir={out}")
    assert log.read_bytes().startswith(before[: before.rindex(b"\n")])
    assert made("refine", out) == made("refine", whole)


def rank_of(parent: int, rank: int) -> int:
    """The process that torchrun gave a rank."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            above = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if above == parent and f"\0RANK={rank}\0" in (path / "environ").read_text():
                return int(path.name)
        except OSError:  # it has ended
            continue
    raise AssertionError("no such rank")


@pytest.mark.parametrize(
    ("stage", "words", "environment", "line"),
    [
        ("align", [], {}, "align is one process, and torchrun started 2; probe, refine and evaluate share work"),
        ("refine", ["method=fo_smoothed"], {}, "method=fo_smoothed is one process, and torchrun started 2"),
        ("refine", [], {"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP: FSDP keeps weights in shards"),
    ],
)
def test_what_does_not_share_its_work_says_so_once(given, stage, words, environment, line):
    own = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", **environment}
    said = {}
    for rank in ("0", "1"):
        command = [sys.executable, "-m", "holdfast", stage, *given, *words]
        done = subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, **own, "RANK": rank}, capture_output=True, text=True
        )
        assert done.returncode != 0
        said[rank] = done.stderr
    assert line in said["0"]
    assert said["0"].count("\n") == 1
    assert said["1"] == ""
