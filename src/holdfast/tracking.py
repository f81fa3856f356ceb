"""Weights & Biases, offline unless told otherwise, and never in the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from holdfast.errors import UserError


class Tracker:
    """One W&B run per stage run; with `tracking=disabled` every call does nothing and W&B is not imported."""

    def __init__(self, cfg: DictConfig, stage: str, label: str, config: Any, out: Path) -> None:
        self.run = None
        if cfg.tracking.mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        settings = wandb.Settings(console="off", x_disable_stats=True, disable_git=True, disable_code=True)
        try:
            self.run = wandb.init(
                project=cfg.tracking.project,
                mode=cfg.tracking.mode,
                dir=cfg.tracking.dir,
                group=f"{cfg.study.name}/{cfg.model.name}",
                job_type=stage,
                name=f"{stage}/{label}",
                # The folder names the run, so that repeating a stage continues its run instead of adding one.
                id=hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16],
                resume="allow" if cfg.tracking.mode == "online" else None,
                config=dict(flatten({**config, "seed": cfg.seed})),
                settings=settings,
            )
        except wandb.errors.Error as error:
            hint = "set tracking=offline or run `wandb login`"
            raise UserError(f"tracking={cfg.tracking.mode}: {str(error).splitlines()[0]}; {hint}") from None

    def log(self, values: Mapping[str, float]) -> None:
        if self.run:
            self.run.log(dict(values))

    def table(self, name: str, frame: Any) -> None:
        if self.run:
            import wandb

            self.run.log({name: wandb.Table(dataframe=frame)})

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self.run:
            self.run.summary.update(dict(flatten(summary)))
            self.run.finish()

    def fail(self) -> None:
        if self.run:
            self.run.finish(exit_code=1)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Any:
    """Yield (dotted key, leaf) pairs, so that W&B's run comparer lines runs up key by key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
