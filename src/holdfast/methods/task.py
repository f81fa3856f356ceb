"""What a method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from holdfast.methods.losses import Batch, LossFn


@dataclass
class Task:
    """`layers` names the groups of `weight_groups(model)` to refine; `batches` never ends; `data` is a hash of the
    rows they are drawn from; `trajectory` is where a zeroth-order method keeps its log."""

    model: Any
    loss: LossFn
    batches: Iterator[Batch]
    layers: list[str]
    settings: DictConfig
    seed: int
    data: str
    trajectory: Path
    progress: Callable[[range], Iterable[int]]
    log: Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Outcome:
    """Loss at each step, and the cost in forward-equivalents of one batch (a backward counts as two)."""

    losses: list[float]
    forwards: int
