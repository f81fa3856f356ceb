"""What a method is given, and what it gives back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from holdfast.errors import UserError
from holdfast.methods.batches import Batch, Batches
from holdfast.methods.losses import LossFn
from holdfast.runtime.memory import Parts
from holdfast.zo import Deployment, Trajectory, TrajectoryError, decoder_layers, vector_groups, weight_groups
from holdfast.zo.deployment import Rounding

BLOCK = 32  # inputs of one output that share a scale
T = TypeVar("T")


@dataclass
class Task:
    """`layers` names the groups of `weight_groups(model)` to refine, and `parameters` what of them; `budget` is in
    forward-equivalents of one batch; `context` holds what a log depends on beside a refiner's own settings; `origin`
    loads the model as it was before alignment; `trajectory` is where a zeroth-order method keeps its log, and `source`
    the log of the method that a control repeats; `roundings` says what each scheme makes of a matrix."""

    model: Any
    loss: LossFn
    batches: Batches
    layers: list[str]
    budget: int
    batch_size: int
    seed: int
    context: dict[str, object]
    origin: Callable[[], Any]
    trajectory: Path
    source: Path | None
    progress: Callable[[range], Iterable[int]]
    log: Callable[[dict[str, float]], None]
    parameters: Literal["matrices", "gains", "biases"] = "matrices"
    roundings: Mapping[str, Rounding] = field(default_factory=dict)
    parts: Parts = field(default_factory=lambda: Parts("refine.batch_size"))

    def stream(self) -> Iterator[Batch]:
        """The batches that all methods of this seed meet, in the same order."""
        return self.batches.stream(self.batch_size, self.seed)

    def logged(self, begin: Callable[[], T]) -> T:
        """`begin()`, which continues the log at `trajectory` if that was interrupted. A sealed log of the same
        settings is of an earlier run, and this one computes anew. A log that does not fit may be the only record of
        another refinement: it is moved to a free name beside it, and a line says so.

        Raises `UserError` for another log that does not do.
        """
        self._without_sealed()
        try:
            return begin()
        except TrajectoryError as error:
            log = self.trajectory
            if not str(error).startswith(f"{log}:"):
                raise UserError(str(error)) from None
            names = (log.with_name(f"{log.stem}.{number}{log.suffix}") for number in count(1))
            kept = next(path for path in names if not path.exists())
            os.replace(log, kept)
            print(f"{error}: moved to {kept.name}", file=sys.stderr)
        return self.logged(begin)

    def _without_sealed(self) -> None:
        try:
            found = Trajectory.read(self.trajectory) if self.trajectory.exists() else None
        except TrajectoryError:  # `begin` will say what is wrong with it
            return
        same = found is not None and found.header["settings"].get("context") == self.context
        if found is not None and found.sealed is not None and same and found.header["seed"] == self.seed:
            self.trajectory.unlink()

    def tensors(self) -> dict[str, nn.Parameter]:
        """What moves of the layers to refine. Raises `UserError` for a layer that has nothing that can be trained."""
        what = self.parameters
        groups = weight_groups(self.model) if what == "matrices" else vector_groups(self.model, what)
        if missing := [layer for layer in self.layers if layer not in groups]:
            raise UserError(f"{missing[0]}: none of its {what} can be trained; it has none, or they are frozen")
        return {name: p for layer in self.layers for name, p in groups[layer].items()}

    def deployment(self, sigma: float, rounding: str | None) -> Deployment:
        """Of all decoder layers. Raises `UserError` for a matrix that cannot be cut into the blocks of a rounding."""
        groups = weight_groups(self.model)
        matrices = {name: p for layer in decoder_layers(groups) for name, p in groups[layer].items()}
        wrong = [f"{name} has {p.shape[1]} inputs" for name, p in matrices.items() if p.shape[1] % BLOCK]
        if rounding in ("q4_0", "w4a8") and wrong:
            raise UserError(f"method.rounding={rounding}: {wrong[0]}, not a multiple of its blocks of {BLOCK}")
        return Deployment(matrices, sigma, self.roundings[rounding] if rounding else None)


@dataclass(frozen=True)
class Outcome:
    """Loss at each step, the cost in forward-equivalents of one batch (a backward counts as two), and what else the
    method has to tell, as JSON values by name."""

    losses: list[float]
    forwards: int
    told: dict[str, Any] = field(default_factory=dict)
