"""Say what a study will take, before anything is loaded: memory, disk, forwards and time of every stage.

holdfast plan study=paper
holdfast plan study=paper 'study.models=[llama-3.1-8b-instruct]' 'plan.gpu_gib=[80]'
holdfast plan study=paper plan.flops=4e14 plan.bandwidth=2.5e12     # nothing is measured
holdfast plan study=tiny 'plan.gpu_gib=[]'                          # on this machine's CPU
holdfast plan study=paper plan.profile=my-slurm                     # and what jobs of a cluster ask for

Shapes come from the model's folder or its `model.architecture`, lengths of texts from the data set if it is made
(`holdfast data`), otherwise from `plan.prompt_tokens` and `plan.response_tokens`. Without a stated throughput,
forwards and copies are timed here for some seconds. Left out: the pretraining of a model made in the run, a
judge's own model, the tasks of lm-eval, and the tables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.runtime.run import quiet
from holdfast.settings.choices import Choices, choices_of
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout, runs

if TYPE_CHECKING:
    from holdfast.planning.demand import Case, Demand
    from holdfast.planning.work import Machine

READS: tuple[str, ...] = (
    *("plan", "study", "model", "data", "openings", "answer", "align", "elicit", "probe", "method", "refine"),
    *("perturb", "evaluate", "referee"),
)
GIB = 2**30
# What a process takes beside the model, in GiB: on a GPU its context and kernels' workspaces, on a CPU its libraries.
CONTEXT = 0.75
LIBRARIES = {
    "answer": 0.66,
    "align": 0.72,
    "elicit": 0.66,
    "probe": 0.66,
    "refine": 0.64,
    "evaluate": 0.74,
    "judge": 0.66,
}
HOST = 6 * GIB  # what the libraries take of a card's host
USABLE = 0.95  # of a memory: the rest goes to fragments and to whoever else is there
START = {
    "answer": 7.0,
    "align": 15.0,
    "elicit": 7.0,
    "probe": 7.0,
    "refine": 7.0,
    "evaluate": 9.0,
    "judge": 7.0,
}  # seconds of imports
DISK = 1e9  # bytes a second, of a checkpoint that is read or written


@dataclass(frozen=True)
class Job:
    """One stage of one model, as often as the grid has it; `name` is the recipe's or method's."""

    model: str
    stage: str
    name: str
    runs: int
    case: Case
    demand: Demand
    machine: Machine

    @property
    def peak(self) -> float:
        """Bytes of the whole process, at the worst moment."""
        return self.demand.memory + self.beside

    @property
    def beside(self) -> float:
        return GIB * (CONTEXT if self.case.cuda else LIBRARIES[self.stage])

    @property
    def host(self) -> float:
        """Bytes of the machine's own memory: beside a card a checkpoint on its way there, and the libraries."""
        return 2 * self.case.shape.bytes + HOST if self.case.cuda else self.peak

    @property
    def saves(self) -> bool:
        return self.stage in ("align", "refine")

    @property
    def disk(self) -> int:
        """Bytes of a run's checkpoint."""
        return self.case.shape.bytes * self.saves

    @property
    def seconds(self) -> float:
        from holdfast.planning.work import seconds

        files = self.case.shape.bytes * (1 + self.saves) / DISK
        return START[self.stage] + files + seconds(self.demand.passes, self.machine)


def jobs(choices: Choices) -> Iterator[Job]:
    """Every stage of every model of the grid."""
    from holdfast.planning.demand import Case
    from holdfast.planning.remedies import STAGES
    from holdfast.planning.shape import shape_of
    from holdfast.planning.texts import Texts

    for model in choices.models:
        own = choices.of(model=model)
        texts, machine = Texts(own), machine_of(own)
        shape = shape_of(own.model, texts.vocabulary)
        for stage, name, chosen, count in _stages(choices, own, model):
            case = Case(choices.of(model=model, **chosen), shape, texts, bool(own.plan.gpu_gib))
            yield Job(model, stage, name, count, case, STAGES[stage](case), machine)


def _stages(choices: Choices, cfg: Config, model: str) -> Iterator[tuple[str, str, dict[str, str], int]]:
    """(stage, of what, what it is composed with, how many runs) of a model."""
    found = [(recipe, method, seed) for m, recipe, method, seed in runs(cfg.study) if m == model]
    methods = {m: choices.of(model=model, method=m).method for m in dict.fromkeys(m for _, m, _ in found)}
    for recipe in dict.fromkeys(recipe for recipe, *_ in found):
        yield "align", recipe, {"align": recipe}, len({seed for r, _, seed in found if r == recipe})
        if cfg.elicit.prompts:
            yield "elicit", recipe, {"align": recipe}, len({seed for r, _, seed in found if r == recipe})
    if cfg.data.self_answered:
        yield "answer", "", {}, 1
    layout = Layout.of(cfg)
    probes = {layout.probe(model, r, s) for r, m, s in found if methods[m].select.probed}
    probes |= {path for path in layout.probes(cfg.study) if path.is_relative_to(layout.root / model)}
    yield "probe", "", {}, len(probes)
    for method, settings in methods.items():
        if settings.refines:
            yield "refine", method, {"method": method}, sum(m == method for _, m, _ in found)
    for words, unrefined in (("aligned", True), ("refined", False)):
        alike = [m for _, m, _ in found if methods[m].refines != unrefined]
        for stage in ("evaluate", "judge") if alike else ():
            yield stage, words, {"method": alike[0]}, len(alike)


def machine_of(cfg: Config) -> Machine:
    """As stated, or as measured where nothing is."""
    from holdfast.planning.shape import dtype_of
    from holdfast.planning.work import Machine

    stated = cfg.plan.flops, cfg.plan.bandwidth
    if all(stated):
        return Machine(*stated, f"{stated[0]:.3g} FLOP/s and {stated[1]:.3g} bytes/s, as stated")
    found = _measured(dtype_of(cfg.model, 0))
    flops, bandwidth = stated[0] or found.flops, stated[1] or found.bandwidth
    return Machine(flops, bandwidth, f"{flops:.3g} FLOP/s and {bandwidth:.3g} bytes/s, {found.words}")


@cache
def _measured(dtype: str) -> Machine:
    from holdfast.planning.work import measured

    return measured(dtype)


def memories(cfg: Config) -> list[float]:
    """GiB to judge by: those of the GPUs given, or this machine's own."""
    return list(cfg.plan.gpu_gib) or [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB]


def report(overrides: list[str]) -> str:
    """All tables."""
    choices = choices_of(overrides)
    cfg, planned = choices.of(model=choices.models[0]), list(jobs(choices))
    parts = [_head(cfg, planned), _table(cfg, planned), _advice(cfg, planned)]
    if cfg.plan.profile:
        from holdfast.planning import profile

        needs: dict[str, profile.Need] = {}
        for job in planned:
            own = profile.Need(job.seconds, job.host / 2**20)
            needs[job.stage] = profile.Need(*map(max, own, needs.get(job.stage, own)))
        parts.append(profile.write(Path(cfg.plan.profile), needs))
    return "\n\n".join(parts)


def _head(cfg: Config, planned: list[Job]) -> str:
    study = cfg.study
    device = f"GPUs of {' and '.join(f'{g:g}' for g in cfg.plan.gpu_gib)} GiB" if cfg.plan.gpu_gib else "this CPU"
    count = len(runs(study))
    lines = [f"study={study.name} on {device}: {count} evaluations of {len({j.model for j in planned})} models"]
    lines += [f"texts       {source}" for source in dict.fromkeys(job.case.texts.source for job in planned)]
    lines += [f"throughput  {words}" for words in dict.fromkeys(job.machine.words for job in planned)]
    return "\n".join(lines)


def _table(cfg: Config, planned: list[Job]) -> str:
    from tabulate import tabulate

    rows: list[dict[str, Any]] = []
    for job in planned:
        row = {"model": job.model, "stage": job.stage, "": job.name, "runs": job.runs, "peak GiB": job.peak / GIB}
        row |= {f"fits {g:.3g} GiB": "yes" if fits(job, g) else "NO" for g in memories(cfg)}
        row |= {"disk GiB": job.disk / GIB, "forwards": round(job.demand.forwards)}
        rows.append(row | {"sequences": round(job.demand.sequences), "time": clock(job.seconds)})
    models = {job.model: job for job in planned}
    # Each model is kept once more as it came.
    total = sum(job.runs * job.disk for job in planned) + sum(job.case.shape.bytes for job in models.values())
    last = {"model": "all runs", "runs": sum(job.runs for job in planned), "disk GiB": total / GIB}
    last |= {f"fits {g:.3g} GiB": "yes" if all(fits(j, g) for j in planned) else "NO" for g in memories(cfg)}
    last |= {"peak GiB": max(job.peak for job in planned) / GIB}
    last |= {key: round(sum(j.runs * getattr(j.demand, key) for j in planned)) for key in ("forwards", "sequences")}
    rows.append(last | {"time": clock(sum(job.runs * job.seconds for job in planned))})
    return tabulate(rows, headers="keys", floatfmt=".1f", intfmt=",")


def fits(job: Job, gib: float) -> bool:
    """Whether the job's peak leaves what a memory of so many GiB needs for itself."""
    return job.peak <= USABLE * gib * GIB


def _advice(cfg: Config, planned: list[Job]) -> str:
    """A line for everything that does not fit."""
    from holdfast.planning.remedies import remedy

    lines = [
        f"{job.model} {job.stage} {job.name}: {job.peak / GIB:.1f} GiB do not fit on {gib:.3g} GiB; would fit: "
        + remedy(job.stage, job.case, USABLE * gib * GIB - job.beside)
        for job in planned
        for gib in memories(cfg)
        if not fits(job, gib)
    ]
    return "\n".join(lines) or "everything fits"


def clock(seconds: float) -> str:
    """`42 s`, `12 min` or `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def main(arguments: list[str]) -> str:
    quiet()
    return report(arguments)
