"""How far training moved a model's weights."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.models import checkpoints
from holdfast.models import load as models
from holdfast.runtime.run import Run


@dataclass(frozen=True)
class Change:
    """Of the matrices that two checkpoints both hold, under one name and in one shape: `moved`, ‖after − before‖ /
    ‖before‖; `rounding`, the part of ‖after − before‖² in elements that changed by one unit in the last place. A step
    that is far below that unit appears as such changes, some here and some there."""

    moved: float
    rounding: float

    @classmethod
    def of(cls, before: Path, after: Path) -> Change:
        with ExitStack() as files:
            of, to = _opened(before, files), _opened(after, files)
            change = size = last = 0.0
            for name in sorted({*of} & {*to}):
                one, other = of[name].get_tensor(name), to[name].get_tensor(name)
                if one.ndim >= 2 and one.shape == other.shape:
                    squares = (other.double() - one.double()).square()
                    change += float(squares.sum())
                    last += float(squares[squares.sqrt() <= _unit(one)].sum())
                    size += float(one.double().square().sum())
        return cls(math.sqrt(change / size) if size else math.nan, last / change if change else 0.0)


def _unit(values: Any) -> Any:
    """One unit in the last place of each value, in its own type; of 0 none."""
    import torch

    exponents = torch.frexp(values.double()).exponent.double() - 1
    return torch.where(values == 0, 0.0, torch.finfo(values.dtype).eps * torch.exp2(exponents))


def _opened(folder: Path, files: ExitStack) -> dict[str, Any]:
    """Name of every tensor -> the open file that holds it."""
    from safetensors import safe_open

    opened = [files.enter_context(safe_open(path, "pt")) for path in checkpoints.shards(folder)]
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - it is no mapping


def distances(run: Run) -> dict[str, float]:
    """Of a checkpoint: how far refinement moved it from the aligned model, and how much of that is rounding; how far
    alignment moved that one from the base, left out of a model that came aligned, and where its base is gone."""
    aligned = run.layout.align(*run.names[:2], run.seed) / "model"
    made = run.layout.checkpoint(*run.names, run.cfg.method.refines, run.seed) / "model"
    change = Change.of(aligned, made) if run.cfg.method.refines else Change(0.0, 0.0)
    found = {"moved": change.moved, "rounding": change.rounding}
    base = models.base_of(run.cfg.model, run.layout)
    if run.names.recipe != models.UNALIGNED and (run.cfg.model.source or Path(base).is_dir()):
        found["moved_by_alignment"] = Change.of(models.fetched(base, run.cfg.model.revision), aligned).moved
    return found
