"""What would make a stage fit: smaller batches, and where they are not enough, something else that can be set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from holdfast.planning.asking import answer, elicit, judge
from holdfast.planning.demand import Case, Demand
from holdfast.planning.evaluation import evaluate, kept
from holdfast.planning.refinement import refine
from holdfast.planning.stages import adapter, align, probe
from holdfast.recipes.zeroth_order import ZerothOrderAlignment
from holdfast.settings.compose import read

STAGES: dict[str, Callable[[Case], Demand]] = {
    **{"answer": answer, "align": align, "elicit": elicit, "probe": probe},
    **{"refine": refine, "evaluate": evaluate, "judge": judge},
}
# The keys of each stage's rows a batch, and the least that they may be.
BATCHES = {
    "align": {"align.batch_size": 1},
    "probe": {"probe.batch_size": 1, "probe.online.batch_size": 2},
    "refine": {"refine.batch_size": 2},
    "answer": {"answer.batch_size": 1},
    "elicit": {"elicit.batch_size": 1},
    "evaluate": {"evaluate.batch_size": 1},
    "judge": {"referee.batch_size": 1},
}
RANK = 16  # of the adapters that are proposed


def with_values(case: Case, values: Mapping[str, object]) -> Case:
    """The case with other values, by their dotted keys."""
    data = case.cfg.as_dict()
    for key, value in values.items():
        *path, last = key.split(".")
        part = data
        for name in path:
            part = part[name]
        part[last] = value
    return replace(case, cfg=read(data))


def remedy(stage: str, case: Case, room: float) -> str:
    """What to set so that the stage takes at most `room` bytes."""
    batches = list(_halved(stage, case))
    for smaller, words in batches:
        if STAGES[stage](smaller).memory <= room:
            return words
    for tried, words in [(case, ""), *batches[-1:]]:
        for taken, more in _otherwise(stage, tried):
            if taken <= room:
                return f"{words} and {more}" if words else more
    return "nothing that can be set here: a smaller model, or more memory"


def _value(case: Case, key: str) -> int:
    found: Any = case.cfg
    for name in key.split("."):
        found = getattr(found, name)
    return int(found)


def _halved(stage: str, case: Case) -> Iterator[tuple[Case, str]]:
    """Ever smaller batches, down to the smallest."""
    sizes = {key: _value(case, key) for key in BATCHES[stage]}
    while any(size > BATCHES[stage][key] for key, size in sizes.items()):
        sizes = {key: max(BATCHES[stage][key], size // 2) for key, size in sizes.items()}
        yield with_values(case, sizes), " ".join(f"{key}={size}" for key, size in sizes.items())


def _otherwise(stage: str, case: Case) -> Iterator[tuple[float, str]]:
    """(bytes, what to do) of other ways, the mildest first."""
    if stage == "align" and not isinstance(case.cfg.align, ZerothOrderAlignment):
        yield adapter(case, RANK), f"LoRA of rank {RANK} in the place of full fine-tuning"
    if stage == "refine" and case.cfg.method.moved:
        count = len(case.shape.layers) // 2
        while count:
            chosen = {"method.select.rule": "top_k", "method.select.k": count}
            words = " ".join(f"{key}={value}" for key, value in chosen.items())
            yield refine(with_values(case, chosen)).memory, words
            count //= 2
    if stage == "evaluate":
        heaviest = sorted(case.cfg.perturb, key=lambda name: -max(kept(case, case.cfg.perturb[name])))
        for place in range(1, len(heaviest) + 1):
            left = {name: case.cfg.perturb[name] for name in heaviest[place:]}
            fewer = replace(case, cfg=case.cfg.changed(perturb=left))
            yield evaluate(fewer).memory, f"without the perturbations {', '.join(heaviest[:place])}"
