"""Which cards a job of the workflow sees."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from holdfast.errors import UserError
from holdfast.runtime import devices
from holdfast.workflow.grid import Workflow

JOB = """
import os, sys, time
from holdfast.runtime import devices
devices.choose("auto")
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


def job(gpus: int, visible: str) -> subprocess.Popen[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible, "HOLDFAST_GPUS": str(gpus)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", JOB], env=environment, **pipes)


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A machine with two cards, as nvidia-smi tells."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf 'GPU-a\\nGPU-b\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_jobs_of_a_pool_get_cards_of_their_own(pool):
    jobs = [job(1, "0,1,2,3"), job(1, "0,1,2,3"), job(2, "0,1,2,3")]
    seen = [one.stdout.readline().strip() for one in jobs]
    assert sorted(",".join(seen).split(",")) == ["0", "1", "2", "3"]
    assert seen[2].count(",") == 1
    jobs[0].kill()  # however a job ends, its card is free
    jobs[0].wait()
    last = job(1, "0,1,2,3")
    assert last.stdout.readline().strip() == seen[0]
    for one in [*jobs[1:], last]:
        one.kill()
        one.wait()


def test_what_a_scheduler_has_chosen_stays(pool):
    jobs = [job(1, "0"), job(1, "0")]  # each the first of those that its own job may see
    assert [one.stdout.readline().strip() for one in jobs] == ["0", "0"]
    for one in jobs:
        one.kill()
        one.wait()


def test_device_cpu_hides_the_cards(smi, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    devices.choose("cpu")
    assert devices.cards() == []


def test_device_cuda_without_a_card_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"device=cuda: there is no card here"):
        devices.choose("cuda")


def test_the_workflow_counts_by_device(smi):
    spread = "model.gpus=2 model.device_map=auto"
    for given, cards in (("", 1), ("device=cpu", 0), (spread, 2), (f"{spread} device=cpu", 0)):
        assert Workflow({"study": "smoke", "set": given}).gpus("tiny") == cards


def test_a_machine_without_a_card_plans_for_those_that_have_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Workflow({"study": "smoke"}).gpus("tiny") == 0
    assert Workflow({"study": "smoke", "set": "device=cuda"}).gpus("tiny") == 1


def test_more_cards_need_a_device_map():
    with pytest.raises(UserError, match=r"model.gpus: more than one card needs device_map=auto"):
        Workflow({"study": "smoke", "set": "model.gpus=2"})
