"""Everything that needs a card, for the record: `make gpu`, or parts of it alone.

python benchmarks/gpu.py                  # all parts, within eight minutes
python benchmarks/gpu.py noise steps-8b   # these parts
python benchmarks/gpu.py --readme         # the paragraph of README about what has been run

Each part writes what it found into benchmarks/gpu/<card>.json as it ends, and all pages anew, so that a run that is
cut keeps what it had. A part's place is taken by its latest run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gpu_pages

ROOT = Path(__file__).resolve().parents[1]
TOKENS = (512, 2048, 16384)
REPEATS = {"135m": 5, "1b": 5, "8b": 3}
# Of the largest shape, whose steps take seconds: the rest differ from these by what the smaller ones show.
LARGE = ["(a)", "rademacher", "response logits", "prefix of the run", "probe"]
SECONDS = 600  # that a part may take
WARM = 1.0  # seconds until a card that was idle has its full clock
ELEMENTS = 2**30  # of the tensors that noise is added to, in matrices of 4096 × 4096
Found = dict[str, Any]


def tests() -> Found:
    """The tests that are marked `gpu`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        workers = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "load"]
        options = ["-m", "gpu", *workers, "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}"]
        ended = _python(["-m", "pytest", *options, "tests/gpu"])
        text = report.read_text(encoding="utf-8") if report.exists() else ""
    counts = {key: int(n) for key, n in re.findall(r'\b(tests|failures|errors|skipped)="(\d+)"', text)}
    bad = re.findall(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.M)
    print(ended.stdout[-6000:] if bad or ended.returncode else f"{counts}")
    return {**counts, "failed": bad, "exit": ended.returncode}


def smoke() -> Found:
    """The DAG of study=smoke, from data to tables, on the card."""
    with tempfile.TemporaryDirectory() as folder:
        given = ["--config", "study=smoke", f"set=results={folder} tracking=disabled"]
        ended = _python(["-m", "snakemake", "--quiet", "progress", "--cores", "all", "results/tables", *given])
        root = Path(folder)
        stages = {}
        for path in sorted(root.rglob("timing.json")):
            name = "/".join(path.parent.relative_to(root / "smoke").parts)
            stages[name] = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        table = root / "tables" / "smoke" / "main.md"
        made = table.read_text(encoding="utf-8") if table.exists() else ""
    print(ended.stderr[-6000:] if ended.returncode else made)
    return {"exit": ended.returncode, "stages": stages}


def noise() -> Found:
    """Bandwidth of the kernel, beside that of a copy measured in turn with it."""
    import torch

    from holdfast.zo.kernels import add_noise
    from holdfast.zo.noise import NOISES, Stream, Target

    values = torch.randn(ELEMENTS, device="cuda")
    other = torch.empty_like(values)
    out = other.view(torch.bfloat16)[:ELEMENTS]
    parts = zip(values.split(2**24), out.split(2**24), strict=True)
    targets = [Target(value, part, place, [1e-3]) for place, (value, part) in enumerate(parts)]
    bare = [target._replace(coefficients=[]) for target in targets]
    rows = []
    for kind in NOISES:
        stream = Stream(kind, 1, 1)
        works: dict[str, tuple[int, Callable[[], Any]]] = {
            "write: round(master + noise)": (6, lambda s=stream: add_noise(targets, [1], s, keep=False)),
            "move: master += noise, and its rounding": (10, lambda s=stream: add_noise(targets, [1], s, keep=True)),
            "restore: round(master)": (6, lambda s=stream: add_noise(bare, [], s, keep=False)),
        }
        for name, (width, work) in works.items():
            times = _in_turn({"copy": lambda: other.copy_(values), "kernel": work})
            copy, kernel = 8 * ELEMENTS / times["copy"], width * ELEMENTS / times["kernel"]
            rows.append({"noise": kind, "pass": name, "TB/s": kernel / 1e12, "copy, TB/s": copy / 1e12})
            rows[-1]["of the copy"] = kernel / copy
    return {"rows": rows}


def _in_turn(works: dict[str, Callable[[], Any]], repeats: int = 15) -> dict[str, float]:
    """Median seconds of each, by the card's own clock."""
    import torch

    begun = time.perf_counter()
    while time.perf_counter() - begun < WARM:
        for work in works.values():
            work()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            torch.cuda.synchronize()
            times[name].append(first.elapsed_time(last) / 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def steps(size: str) -> Found:
    """`zo_step.py` for one shape and three lengths."""
    options = ["--shape", f"llama-{size}", "--repeats", str(REPEATS[size]), "--device", "cuda", "--dtype", "bfloat16"]
    options += ["--json", *(["--variants", *LARGE] if size == "8b" else [])]
    ended = _python(["benchmarks/zo_step.py", *options, "--tokens", *map(str, TOKENS)])
    if ended.returncode:
        print(ended.stderr[-4000:])
        return {"exit": ended.returncode, "rows": []}
    return {"rows": json.loads(ended.stdout)["rows"]}


def large() -> Found:
    """A model of 8 B parameters through probe, refinement and evaluation."""
    import gpu_large

    return gpu_large.run()


PARTS: dict[str, Callable[[], Found]] = {
    "noise": noise,
    **{f"steps-{size}": partial(steps, size) for size in ("8b", "1b", "135m")},
    "tests": tests,
    "large": large,
    "smoke": smoke,
}


def _python(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def _card() -> Found:
    """The card, and the versions that a result depends on."""
    import torch
    import transformers
    import triton

    versions = {"torch": torch.__version__, "Triton": triton.__version__, "transformers": transformers.__version__}
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    own = {"Python": platform.python_version(), "CUDA": torch.version.cuda}
    return {"card": torch.cuda.get_device_name(), "memory, GiB": round(memory), **own, **versions}


def record(name: str, found: Found, seconds: float) -> None:
    """Put a part's results in its place."""
    card = _card()
    path = gpu_pages.FOLDER / f"{gpu_pages.stem(card)}.json"
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}
    known |= card
    known["parts"][name] = {**found, "seconds": round(seconds, 1)}
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    gpu_pages.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default all)")
    parser.add_argument("--readme", action="store_true", help="only write the pages and README's paragraph anew")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if arguments.readme:
        return gpu_pages.write()
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"make gpu: needs a CUDA device and torch built for it; torch {torch.__version__} here sees none")
    failed = []
    for name in arguments.parts or PARTS:
        print(f"== {name}", flush=True)
        begun = time.perf_counter()
        found = PARTS[name]()
        torch.cuda.empty_cache()
        record(name, found, time.perf_counter() - begun)
        failed += [name] * bool(found.get("exit"))
        print(f"== {name}: {time.perf_counter() - begun:.0f} s", flush=True)
    if failed:
        sys.exit(f"make gpu: {', '.join(failed)} failed; what they printed is above")


if __name__ == "__main__":
    main()
