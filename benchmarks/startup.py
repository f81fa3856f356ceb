"""How long a stage takes to its first forward, and Snakemake's share of a study of short jobs.

    python benchmarks/startup.py [--repeats 3]

The study is `smoke`: a model of 0.1 M parameters, so that starting up is most of what there is. Each stage is then run
again by itself, in a process of its own, and ends at its first forward. Snakemake's share is what is left of the time
of the whole study on one core when the seconds of its stages are taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("pretrain", "align", "probe", "refine", "evaluate", "judge")
# Ends the process at the first forward of any module, and says how old it is.
FIRST = """
import os, sys, time
started, before = time.time(), float(sys.argv.pop(1))
from torch.nn.modules.module import register_module_forward_pre_hook
def stop(*_):
    os.write(2, f"first forward after {time.time() - started + before:.3f} s".encode())
    os._exit(0)
register_module_forward_pre_hook(stop)
from holdfast.__main__ import main
main(sys.argv[1:])
"""


def interpreter() -> float:
    """Seconds that Python takes to its first line."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return time.perf_counter() - begun


def first_forward(stage: str, folder: Path, before: float) -> float:
    given = [stage, "study=smoke", "method=zo_selective", "tracking=disabled", f"hydra.run.dir={folder / 'again'}"]
    command = [sys.executable, "-c", FIRST, f"{before}", *given]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = re.search(r"first forward after ([\d.]+) s", ended.stderr)
    if not found:
        sys.exit(f"{stage}: {ended.stderr[-500:]}")
    return float(found[1])


def study(folder: Path) -> tuple[float, list[float]]:
    """Seconds of the whole on one core, and of its stages as they say themselves."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--snakefile", str(ROOT / "Snakefile"), "--quiet"]
    begun = time.perf_counter()
    words = ["all", "--config", "study=smoke", "set=tracking=disabled"]
    subprocess.run([*command, *words], cwd=folder, check=True, capture_output=True)
    whole = time.perf_counter() - begun
    return whole, [json.loads(path.read_text())["seconds"] for path in folder.rglob("timing.json")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        whole, stages = study(Path(name))
        before = min(interpreter() for _ in range(5))
        print(f"{len(stages)} jobs in {whole:.1f} s on one core; their stages {sum(stages):.1f} s")
        print(f"beside them {(whole - sum(stages)) / len(stages):.2f} s a job, begun and ended by Snakemake")
        print(f"\n| stage | seconds to the first forward, median of {repeats} |\n|---|---|")
        for stage in STAGES:
            found = [first_forward(stage, Path(name), before) for _ in range(repeats)]
            print(f"| {stage} | {statistics.median(found):.2f} |", flush=True)
    print(f"\n{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
