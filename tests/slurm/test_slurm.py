"""The smoke study through a real Slurm on this machine: the same bytes as without, also after lost jobs and nodes.

By hand: `apt-get install slurm-wlm munge`, `pip install -e '.[slurm]'`, `pytest -n 0 -m slurm tests/slurm`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cluster import Cluster, missing

ROOT = Path(__file__).resolve().parents[2]
OFF = ("--config", "study=smoke", "set=tracking=disabled")
QUEUE = ("--workflow-profile", str(ROOT / "profiles/slurm"), "--slurm-no-account", "--slurm-status-command", "squeue")
QUEUE += ("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2", "--jobs", "2")
QUEUE += ("--default-resources", "slurm_partition=here", "mem_mb=2000", "runtime=20")
pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster():
    if lacking := missing():
        pytest.skip(f"no Slurm can be started: {', '.join(lacking)}")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("pip install snakemake-executor-plugin-slurm")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, Cluster(Path(folder)) as made:
        yield made


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "results/tables", *words, *OFF]


def digests(folder: Path) -> dict[str, str]:
    found = [path for path in (folder / "results/tables/smoke").iterdir() if path.stem != "timing"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The bytes of a run without Slurm."""
    folder = tmp_path_factory.mktemp("plain")
    ended = subprocess.run(command("--cores", "2"), cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return digests(folder)


def names(cluster: Cluster) -> list[tuple[str, str]]:
    """(number, comment) of the jobs that run."""
    lines = cluster.said("squeue", "--noheader", "--states=R", "--format=%i %k").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[-1]) for line in lines]


def wait_for(cluster: Cluster, rule: str, running: subprocess.Popen[bytes]) -> str:
    """The number of the first job of a rule, once it runs."""
    while running.poll() is None:
        for number, comment in names(cluster):
            if rule in comment:
                return number
        time.sleep(0.2)
    raise AssertionError(f"no job of {rule} was seen")


def test_the_study_has_the_same_bytes_and_outlives_a_lost_job_and_a_lost_node(cluster, plain, tmp_path):
    asked = command(*QUEUE)
    with (tmp_path / "log").open("w") as log:
        quiet = {"cwd": tmp_path, "env": cluster.environment, "stdout": log, "stderr": log}
        running = subprocess.Popen(asked, **quiet)
        cluster.said("scancel", wait_for(cluster, "align", running))
        wait_for(cluster, "evaluate", running)  # so the job that was lost was tried again
        cluster.stop("slurmd", signal.SIGKILL)
        time.sleep(5)
        cluster.start("slurmd", "-D", "-N", cluster.host)
        if running.wait(900) != 0:
            assert subprocess.run(asked, timeout=900, **quiet).returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert digests(tmp_path) == plain


def test_a_sweep_by_submitit(cluster, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launched = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=here", "hydra.launcher.timeout_min=5"]
    launched += ["hydra.launcher.mem_gb=1", "hydra.launcher.cpus_per_task=1"]
    command = [
        sys.executable,
        "-m",
        "holdfast",
        "data",
        "-m",
        *launched,
        "data.pretrain_rows=20,30",
        "tracking=disabled",
    ]
    ended = subprocess.run(command, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert len(list(tmp_path.glob("multirun/data/*/*/metrics.json"))) == 2
