"""Break a study at seeded random moments, and see whether it ends with the bytes of an undisturbed one.

python benchmarks/faults.py --count 60 --seed 0

Each fault meets a call of `snakemake` on `study=smoke` that goes on from what is there, less one stage's files:

stage      kill -9 of one process below Snakemake
snakemake  kill -9 of Snakemake alone
group      kill -9 of all of them at once
memory     a call whose processes may take no more than some hundred MiB each
disk       a call in which no file may become longer than some hundred KiB

After so many faults the study is called until it ends, and its tables are compared; then it begins anew. Prints every
fault with what the call said last, the count by kind, and how long the longest recovery took.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("stage", "snakemake", "group", "memory", "disk")
COMMAND = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all", "--snakefile", str(ROOT / "Snakefile")]
OURS = ["--config", "study=smoke", "set=tracking=disabled"]
MIB = 2**20


def call(folder: Path, *flags: str, limits: dict[int, int] | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        os.setsid()
        for what, most in (limits or {}).items():
            resource.setrlimit(what, (most, most))

    log = (folder / "log.txt").open("a")
    return subprocess.Popen([*COMMAND, *flags, *OURS], cwd=folder, stdout=log, stderr=log, text=True, preexec_fn=limit)


def below(pid: int) -> list[int]:
    """All processes that descend from one."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, left = [], [pid]
    while left:
        own = children.get(left.pop(), [])
        found += own
        left += own
    return found


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def undo(folder: Path, noise: random.Random) -> None:
    """Lose what one stage wrote, so that there is work for the next call."""
    done = sorted((folder / "results/smoke").rglob("metrics.json"))
    if done:
        shutil.rmtree(noise.choice(done).parent)


def inject(folder: Path, kind: str, noise: random.Random) -> str:
    """One fault; gives when and how it came."""
    if kind in ("memory", "disk"):
        what = resource.RLIMIT_DATA if kind == "memory" else resource.RLIMIT_FSIZE
        most = noise.randint(150, 900) * MIB if kind == "memory" else noise.randint(20, 800) * 1024
        process = call(folder, limits={what: most})
        status = process.wait()
        return f"{most / MIB:.1f} MiB, exit {status}"
    process, wait = call(folder), noise.uniform(1, 25)
    try:
        status = process.wait(wait)
        return f"ended before, exit {status}"
    except subprocess.TimeoutExpired:
        own = below(process.pid)
        chosen = {"stage": noise.sample(own, 1) if own else [], "snakemake": [], "group": own}[kind]
        kill(*chosen, *([process.pid] if kind != "stage" else []))
        process.wait()
        return f"after {wait:.1f} s"


def digest(folder: Path) -> str:
    """Of all tables; times stand in tables of their own, which no target names."""
    found = hashlib.sha256()
    for path in sorted((folder / "results/tables/smoke").glob("*")):
        if path.stem != "timing":
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def finish(folder: Path) -> float:
    """Call until it ends; gives the seconds."""
    begun = time.perf_counter()
    if status := call(folder, "--rerun-incomplete").wait():
        sys.exit(f"the call after the faults ended with {status}; {folder / 'log.txt'} says why")
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=8, help="faults between two comparisons")
    asked = parser.parse_args()
    noise, counts, longest = random.Random(asked.seed), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        whole.mkdir()
        undisturbed = finish(whole)
        expected = digest(whole)
        print(f"undisturbed: {undisturbed:.0f} s, tables {expected[:12]}", flush=True)
        for number in range(asked.count):
            folder = Path(place, "broken")
            folder.mkdir(exist_ok=True)
            kind = KINDS[number % len(KINDS)]
            undo(folder, noise)
            said = inject(folder, kind, noise)
            counts[kind] += 1
            print(f"{number + 1:>3} {kind:<9} {said}", flush=True)
            if (number + 1) % asked.each == 0 or number + 1 == asked.count:
                took = finish(folder)
                longest = max(longest, took)
                same = digest(folder) == expected
                print(f"    recovered in {took:.0f} s; tables are {'the same' if same else 'OTHERS'}", flush=True)
                if not same:
                    sys.exit(1)
                shutil.rmtree(folder)
    print(
        f"{asked.count} faults ({', '.join(f'{n} {k}' for k, n in counts.items())}): all ended in the same bytes; ",
        end="",
    )
    print(f"longest recovery {longest:.0f} s, undisturbed {undisturbed:.0f} s")


if __name__ == "__main__":
    main()
