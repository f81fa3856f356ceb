"""Attacks that leave the model alone: sampling instead of greedy decoding, and an answer that has already begun."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from holdfast.perturbations.point import PERTURBATIONS, Arm, Bench, Level, Perturbation, Point
from holdfast.settings.options import Share


@PERTURBATIONS.register("decoding")
class Decoding(Perturbation):
    """Sampling at temperature `level` from the nucleus; greedy at 0. A prompt counts by the worst of its draws: the
    rate is ASR@k, of k draws. Margins are those of the clean model."""

    top_p: Share = Field(description="probability of the nucleus")

    attack = True
    keeps = "nothing"
    level = Level("temperature")
    label = "T={level:g}"
    random = True

    @property
    def worst(self) -> bool:
        return True

    def reads(self, level: float) -> str:
        return f"{self.label}, ASR@{self.draws_at(level)}"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.sampler import Sampler

        seed = zlib.crc32(f"{bench.noise_seed} {point.draw}".encode())
        sampler = Sampler(point.level, self.top_p, seed) if point.level > 0 else None
        yield Arm(model, sampler=sampler)


@PERTURBATIONS.register("prefill")
class Prefill(Perturbation):
    """The model's answer is made to begin with the first `level` tokens of a compliant answer."""

    attack = True
    keeps = "nothing"
    level = Level("tokens", whole=True)
    label = "{level:g} tokens"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        yield Arm(model, prefill=int(point.level))
