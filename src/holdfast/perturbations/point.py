"""What a perturbation is, and what one point of the evaluation grid hands to it and gets from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from holdfast.errors import UserError
from holdfast.settings.options import SECTIONS, Config, Count, Options, Registry, Section, Some

PERTURBATIONS = Registry("perturbation", "holdfast.perturbations")
SECTIONS["perturb"] = Section(PERTURBATIONS, many=True)


Keeps = Literal["nothing", "snapshot", "masters", "tables", "packed", "copy"]


class Level(NamedTuple):
    """The unit of a perturbation's levels, and their range."""

    unit: str
    least: float = 0
    most: float = float("inf")
    whole: bool = False


class Perturbation(Options):
    """What happens to a model after alignment, at several levels. `applied` leaves the model as it found it, bitwise.
    The noise of a draw depends on seed and draw alone, so that all methods meet the same."""

    kind: str
    levels: Some[float] = Field(description="how strong, in the unit of the kind")
    family: str = Field(description="what it is shown with")
    draws: Count = Field(description="evaluations of a level, each with its own noise or rows")
    fewer: dict[float, Count] = Field(default_factory=dict, description="draws of single levels that have others")
    generate: list[float] | None = Field(default=None, description="levels that are answered; null: all, []: none")

    level: ClassVar[Level]
    label: ClassVar[str] = "{name}"  # how a level reads in tables: of {name}, {level} and {percent}
    random: ClassVar[bool] = False  # whether one draw alone is of noise too
    quantizes: ClassVar[bool] = False
    attack: ClassVar[bool] = False  # somebody aims it at harmful prompts
    keeps: ClassVar[Keeps] = "snapshot"  # beside the model while a point is evaluated: what a plan counts by

    @abstractmethod
    def applied(self, model: Any, point: Point, bench: Bench) -> AbstractContextManager[Arm]:
        """A context in which the point's `Arm` may be used."""

    def ran(self, device: str) -> str:
        """Of a quantizer: its scheme, and what did the arithmetic; empty for all else."""
        return ""

    def reads(self, level: float) -> str:
        """The form of a level's label."""
        return self.label + f", worst of {self.draws_at(level)}" * self.worst

    @property
    def stored(self) -> float:
        """Of what keeps `packed` weights: bits of one, with its share of their scales."""
        return min(self.levels)

    @property
    def attacks(self) -> bool:
        """Whether it happens to harmful prompts alone: benign ones are answered as if nothing had happened."""
        return self.attack

    @property
    def worst(self) -> bool:
        """Whether every prompt counts by the worst of a level's draws, as whoever tries again and again would."""
        return False

    def draws_at(self, level: float) -> int:
        """How many draws a level is evaluated with."""
        return self.fewer.get(level, self.draws)

    def tuning(self, level: float, most: int) -> range:
        """The draws that choose a level, `most` of them: none of those that it is tested on, if it has several."""
        first = self.draws_at(level)
        if self.worst:
            return range(first, 2 * first)  # as many as are tested on
        return range(first, first + most) if self.random or first > 1 else range(1)

    @property
    def most_draws(self) -> int:
        return max(map(self.draws_at, self.levels))

    def agree(self, key: str, cfg: Config) -> None:
        unit, least, most, whole = self.level
        for level in self.levels:
            if not least <= level <= most or (whole and level != int(level)):
                kind = "whole numbers" if whole else "numbers"
                most_words = f" to {most:g}" if most < float("inf") else " up"
                raise UserError(f"{key}.levels={self.levels}: give {unit}, {kind} from {least:g}{most_words}")
        if extra := set(self.generate or []) - set(self.levels):
            raise UserError(f"{key}.generate: {sorted(extra)} not among levels={self.levels}")


@dataclass(frozen=True)
class Point:
    """One (perturbation, level, draw); `name` is the YAML's."""

    name: str
    perturbation: Perturbation
    level: float
    draw: int
    generate: bool = True  # responses too, or margins and utility alone

    @property
    def family(self) -> str:
        return self.perturbation.family


@dataclass(frozen=True)
class Bench:
    """What a perturbation may use besides the model. `noise_seed` and a point's draw name its noise, so that all
    methods of a seed meet the same; `training` gives (prompt ids, response ids): `benign` those that alignment had,
    `other` benign ones and `attack` harmful ones with what complies, both of which it never had; `batch_size` is how
    many rows it may run at once."""

    noise_seed: int
    pad: int
    training: Callable[[str], list[tuple[list[int], list[int]]]] = lambda label: []
    batch_size: int = 32


@dataclass(frozen=True)
class Arm:
    """What is evaluated: a model, how it decodes, and how much of a compliant answer it is made to begin with."""

    model: Any
    sampler: Any = None  # what chooses tokens, if not the likeliest is taken
    prefill: int = 0  # tokens
    shared: bool = True  # whether equal tokens at the beginning have equal states in all prompts


def perturbed(model: Any, point: Point, bench: Bench) -> AbstractContextManager[Arm]:
    """A context in which the point's `Arm` may be used."""
    return point.perturbation.applied(model, point, bench)


def grid(perturb: Mapping[str, Perturbation]) -> list[Point]:
    """Every (perturbation, level, draw) of the configuration, in its order."""
    return [
        Point(name, p, level, draw, generate=p.generate is None or level in p.generate)
        for name, p in perturb.items()
        for level in p.levels
        for draw in range(p.draws_at(level))
    ]
