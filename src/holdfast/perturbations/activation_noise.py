"""Gaussian noise on the activations of every decoder layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from holdfast.perturbations.point import PERTURBATIONS, Arm, Bench, Level, Perturbation, Point


@PERTURBATIONS.register("activation_noise")
class ActivationNoise(Perturbation):
    """h + level · s · z on the output h of every decoder layer, or of modules in it."""

    scale: Literal["relative", "absolute"] = Field(description="relative: s is the rms of the token's h; absolute: 1")
    place: Literal["residual", "norm", "mlp"] = Field(
        description="the output of each layer, of each normalization in it, or of its MLP"
    )
    tokens: Literal["prompt", "generated", "all"] = Field(description="which tokens are disturbed")
    worst_draw: bool = Field(description="whether each harmful prompt counts by the worst of a level's draws")

    level = Level("σ")
    label = "σ={level:g}"
    random = True
    keeps = "tables"

    @property
    def worst(self) -> bool:
        return self.worst_draw

    @property
    def attacks(self) -> bool:
        return self.worst_draw

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.activations import How, noise_at, places_of
        from holdfast.perturbations.snapshot import decoder_matrices

        decoder_matrices(model)  # says so of an architecture of which only a part would be perturbed
        places = dict(enumerate(places_of(model, self.place)))
        how = How(point.level, point.draw, self.scale == "relative", self.tokens)
        with noise_at(model, places, how, bench.noise_seed, bench.pad):
            yield Arm(model, shared=False)
