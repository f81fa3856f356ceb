"""Unstructured pruning of the decoder's linear layers; a level is the share of weights set to zero.

Embeddings, head and vectors stay as they are, and so does what `decoder_stack` refuses, as experts are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from holdfast.perturbations.point import PERTURBATIONS, Arm, Bench, Level, Perturbation, Point
from holdfast.settings.options import Count


@PERTURBATIONS.register("magnitude")
class Magnitude(Perturbation):
    """The smallest weights of each matrix become zero."""

    level = Level("share of the weights", most=1)
    label = "{name} {percent:g} %"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.masks import without

        with without(model, point.level, lambda name, weight: weight.abs(), of="matrix"):
            yield Arm(model)


@PERTURBATIONS.register("wanda")
class Wanda(Perturbation):
    """The weights with the smallest |W_ij| · ‖x_j‖ of each output become zero (Sun et al., *A Simple and Effective
    Pruning Approach for Large Language Models*, 2023), x the inputs of that layer on benign training rows.

    Norms are taken on the dense model, all layers at once; the paper takes a layer's after those below it are pruned.
    """

    calibration: Count = Field(description="benign training rows")

    level = Level("share of the weights", most=1)
    label = "{name} {percent:g} %"

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        from holdfast.perturbations.masks import input_norms, without

        norms = input_norms(model, bench, self.calibration)
        with without(model, point.level, lambda name, weight: weight.float().abs() * norms[name], of="row"):
            yield Arm(model)
