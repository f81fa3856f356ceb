"""How far training moved a model's weights."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from holdfast.models import checkpoints
from holdfast.models import load as models
from holdfast.runtime.run import Run


def moved(before: Path, after: Path) -> float:
    """‖after − before‖ / ‖before‖ over the matrices that both folders hold under one name and in one shape."""
    with ExitStack() as files:
        of, to = _opened(before, files), _opened(after, files)
        change = size = 0.0
        for name in sorted({*of} & {*to}):
            one, other = of[name].get_tensor(name), to[name].get_tensor(name)
            if one.ndim >= 2 and one.shape == other.shape:
                change += float((other.double() - one.double()).square().sum())
                size += float(one.double().square().sum())
    return math.sqrt(change / size) if size else math.nan


def _opened(folder: Path, files: ExitStack) -> dict[str, Any]:
    """Name of every tensor -> the open file that holds it."""
    from safetensors import safe_open

    opened = [files.enter_context(safe_open(path, "pt")) for path in checkpoints.shards(folder)]
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - it is no mapping


def distances(run: Run) -> dict[str, float]:
    """Of a checkpoint: how far refinement moved it from the aligned model, and alignment that one from the base; the
    latter is left out of a model that came aligned, and where its base is gone."""
    aligned = run.layout.align(*run.names[:2], run.seed) / "model"
    made = run.layout.checkpoint(*run.names, run.cfg.method.refines, run.seed) / "model"
    found = {"moved": moved(aligned, made) if run.cfg.method.refines else 0.0}
    base = models.base_of(run.cfg.model, run.layout)
    if run.names.recipe != models.UNALIGNED and (run.cfg.model.source or Path(base).is_dir()):
        found["moved_by_alignment"] = moved(models.fetched(base, run.cfg.model.revision), aligned)
    return found
