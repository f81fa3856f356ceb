"""How far more GPUs help: a grid's jobs on many of them, and one job's evaluations shared out, simulated.

python benchmarks/scaling.py                 # the paper's grid, on GPUs as stated
python benchmarks/scaling.py --write         # and into docs/scaling.md
python benchmarks/scaling.py --measure       # steps by one and by two processes on this machine's CPU

Times of jobs are those of `holdfast plan` for a GPU of the stated throughput. Jobs begin when what they need is made
and a GPU is free, the one with the longest way to go first, as one may hope of a cluster without other users.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from holdfast.commands.plan import Job, jobs
from holdfast.settings.choices import Choices, choices_of
from holdfast.settings.paths import runs

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/scaling.md"
BEGIN, END = "<!-- begin: benchmarks/scaling.py --write writes this -->", "<!-- end -->"
STATED = ("plan.flops=4e14", "plan.bandwidth=3e12")  # assumed: bfloat16 as forwards reach it, memory as copies do
GATHER = {8: 5e-5, 10**9: 3e-4}  # assumed: seconds of a gather of some bytes, within a machine and between several
START = 7.0  # seconds of a process before its work, as the plan has it
GPUS = (1, 8, 64, 512)


@dataclass
class Work:
    """One job: its seconds on so many GPUs, those that wait for it, and how many it waits for."""

    seconds: float
    gpus: int = 1
    after: list[Work] = field(default_factory=list)
    waits: int = 0
    left: float = 0.0  # seconds from its start to the study's end, without waiting

    def then(self, other: Work) -> Work:
        self.after.append(other)
        other.waits += 1
        return other


def graph(choices: Choices, planned: list[Job], processes: int) -> list[Work]:
    """The jobs of a study, in an order in which each comes after what it needs."""
    times = {(job.model, job.stage, job.name): job.seconds for job in planned}
    cfg, made, found = choices.of(model=choices.models[0]), {}, []
    points = 1 + sum(p.draws * len(p.levels) for p in cfg.perturb.values())

    def one(model: str, stage: str, name: str, units: int = 1) -> Work:
        seconds, gpus = times[model, stage, name], min(units, processes)
        found.append(Work(START + (seconds - START) * math.ceil(units / gpus) / units, gpus))
        return found[-1]

    for model, recipe, method, seed in runs(cfg.study):
        own = choices.of(model=model, method=method).method
        if (model, recipe, seed) not in made:
            aligned = one(model, "align", recipe)
            ready = aligned.then(one(model, "elicit", recipe)) if cfg.elicit.prompts else aligned
            made[model, recipe, seed] = aligned, ready, ready.then(one(model, "probe", "", 32))
        aligned, ready, probe = made[model, recipe, seed]
        last = aligned
        if own.refines:
            queries = getattr(own, "queries", 1)
            source = probe if own.select.probed else ready
            last = source.then(one(model, "refine", method, 2 * queries if own.shares else 1))
        evaluated = last.then(one(model, "evaluate", "refined" if own.refines else "aligned", points))
        evaluated.then(one(model, "judge", "refined" if own.refines else "aligned"))
    return found


def makespan(work: list[Work], gpus: int) -> float:
    """Seconds until all is done on so many GPUs, longest way to go first."""
    waits = {id(one): one.waits for one in work}
    for one in reversed(work):
        one.left = one.seconds + max((next_.left for next_ in one.after), default=0.0)
    places = {id(one): place for place, one in enumerate(work)}
    ready = sorted((-one.left, place, one) for place, one in enumerate(work) if not one.waits)
    running: list[tuple[float, int, Work]] = []
    now, free = 0.0, gpus
    while ready or running:
        waiting = []
        for first in ready:
            one = first[2]
            if one.gpus <= free:
                free -= one.gpus
                heapq.heappush(running, (now + one.seconds, first[1], one))
            else:
                waiting.append(first)
        ready = waiting
        now, _, done = heapq.heappop(running)
        free += done.gpus
        for other in done.after:
            waits[id(other)] -= 1
            if not waits[id(other)]:
                bisect.insort(ready, (-other.left, places[id(other)], other))
    return now


def grid_table(study: str, choices: Choices, planned: list[Job]) -> str:
    """The study on 1 to 512 GPUs, a GPU a job and four GPUs a job that can share them."""
    rows = []
    alone = sum(one.seconds for one in graph(choices, planned, 1))
    for gpus in GPUS:
        row: dict[str, Any] = {"GPUs": gpus}
        for processes in (1, 4):
            if gpus < processes:
                continue
            taken = makespan(graph(choices, planned, processes), gpus)
            row[f"hours, {processes} a job"] = taken / 3600
            row[f"efficiency, {processes} a job"] = alone / (gpus * taken)
        rows.append(row)
    count = len(graph(choices, planned, 1))
    head = f"`study={study}`: {count:,} jobs that need a GPU, {alone / 3600:,.0f} GPU-hours."
    return f"{head}\n\n{tabulate(rows, headers='keys', tablefmt='github', floatfmt='.3g')}"


def step_table(model: str, choices: Choices, planned: list[Job]) -> str:
    """One refinement of all layers by many processes."""
    job = next(job for job in planned if (job.model, job.stage, job.name) == (model, "refine", "zo_all"))
    refine = choices.of(model=model, method="zo_all").refine
    sides, rows = 2 * refine.queries, []
    side = (job.seconds - START) / (refine.steps * (sides + 1))  # a move of the weights counts as one more
    for size in (1, 2, 4, 8, 16, 64):
        gather = 0.0 if size == 1 else next(seconds for most, seconds in GATHER.items() if size <= most)
        step = math.ceil(sides / size) * side + side + gather
        rows.append({"processes": size, "seconds a step": step, "efficiency": (sides + 1) * side / (size * step)})
    head = f"A step of {refine.queries} queries, {model}, all layers; {16 * sides:,} bytes travel a process and step."
    return f"{head}\n\n{tabulate(rows, headers='keys', tablefmt='github', floatfmt='.3g')}"


def report(study: str) -> str:
    choices = choices_of([f"study={study}", *STATED])
    planned = list(jobs(choices))
    return f"{grid_table(study, choices, planned)}\n\n{step_table('llama-3.1-8b-instruct', choices, planned)}"


PROGRAM = """
import sys, time, torch, torch.distributed as dist
sys.path.insert(0, {here!r})
from zo_step import build, nll, batch_of
from holdfast.zo import ZeroOrderRefiner
torch.set_num_threads(1)
dist.init_process_group("gloo")
model = build("llama-135m", torch.float32, "cpu")
ids = batch_of(512, model.config.vocab_size, "cpu")
refiner = ZeroOrderRefiner(model, lambda m, batch: nll(m, batch, False), layers=["layer.%d" % n for n in range(30)],
    mu=0.1, lr=1e-3, queries=4, over_ranks="queries")
refiner.step(ids)
times = []
for _ in range({steps}):
    begun = time.perf_counter()
    refiner.step(ids)
    times.append(time.perf_counter() - begun)
if dist.get_rank() == 0:
    print(sorted(times)[len(times) // 2])
"""


def measured(steps: int) -> str:
    """Seconds of a step by one and by two processes of one thread each, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "step.py")
        program.write_text(PROGRAM.format(here=str(ROOT / "benchmarks"), steps=steps))
        found = {}
        for size in (1, 2):
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
            begun = time.perf_counter()
            done = subprocess.run([*torchrun, str(program)], capture_output=True, text=True, check=True)
            found[size] = float(done.stdout.split()[-1])
            print(f"{size}: {found[size]:.2f} s a step, {time.perf_counter() - begun:.0f} s in all", file=sys.stderr)
    return f"two processes: {found[2]:.2f} s a step, one: {found[1]:.2f} s, efficiency {found[1] / found[2] / 2:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="paper")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measured(arguments.steps))
        return
    text = report(arguments.study)
    print(text)
    if arguments.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
