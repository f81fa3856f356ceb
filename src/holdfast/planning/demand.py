"""What a stage is planned from, and what it takes."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.planning.shape import Shape
from holdfast.planning.texts import Texts
from holdfast.planning.work import Pass
from holdfast.settings.options import Config


@dataclass(frozen=True)
class Case:
    """A composed study, the shape of its model, its texts, and whether stages run on a GPU."""

    cfg: Config
    shape: Shape
    texts: Texts
    cuda: bool


@dataclass(frozen=True)
class Demand:
    """`memory`: bytes at the worst moment, the process aside; `forwards` of a batch, a backward as two, and times
    their `sequences`."""

    memory: float
    forwards: float
    sequences: float
    passes: list[Pass]
