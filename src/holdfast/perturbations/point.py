"""What one point of the evaluation grid is, what it may use, and what it hands to the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from holdfast.settings.schema import OPTIONS


@dataclass(frozen=True)
class Point:
    """`name` is the YAML's; the schema says in which unit `level` is and which `options` the kind reads."""

    name: str
    family: str
    kind: str
    level: float
    draw: int
    options: Mapping[str, Any] = field(default_factory=dict)
    generate: bool = True  # responses too, or margins and utility alone


@dataclass(frozen=True)
class Bench:
    """What a perturbation may use besides the model. `noise_seed` and a point's draw name its noise, so that all
    methods of a seed meet the same; `training` gives (prompt ids, response ids) of a label, `attack` harmful
    prompts with a compliant opening in place of an answer; `batch_size` is how many rows it may run at once."""

    noise_seed: int
    pad: int
    training: Callable[[str], list[tuple[list[int], list[int]]]] = lambda label: []
    batch_size: int = 32


@dataclass(frozen=True)
class Arm:
    """What is evaluated: a model, how it decodes, and how much of a compliant answer it is made to begin with."""

    model: Any
    sampler: Any = None  # a LogitsProcessor
    prefill: int = 0  # tokens


Perturbation = Callable[[Any, Point, Bench], AbstractContextManager[Arm]]


def grid(perturb: Any) -> list[Point]:
    """Every (perturbation, level, draw) of the configuration, in its order."""
    return [
        Point(
            name,
            p.family,
            p.kind,
            float(level),
            draw,
            {option: p[option] for option in OPTIONS[p.kind]},
            generate=p.generate is None or level in p.generate,
        )
        for name, p in perturb.items()
        for level in p.levels
        for draw in range(p.draws)
    ]
