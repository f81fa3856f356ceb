"""Save a workspace at W&B that shows the methods of a study side by side.

holdfast workspace study=smollm2
WANDB_ENTITY=our-team holdfast workspace study=paper tracking.project=hardening

Runs come there by `tracking=online`, or by `wandb sync`. It has a panel for each point and metric, methods as bars of
the mean over seeds; losses by step; and a comparison of settings. Saved again, it is a new one of the same name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from holdfast.errors import UserError, first_line
from holdfast.runtime.tracking import METHOD
from holdfast.settings.compose import composed
from holdfast.settings.options import Config
from holdfast.settings.paths import models_of

READS = ("study", "tracking", "perturb")
SECTIONS = {  # title -> the metrics of a point that it shows
    "Harmful prompts answered": ["asr"],
    "Guards: benign prompts refused": ["over_refusal"],
    "Guards: broken answers, utility": ["broken_benign", "utility"],
}


def main(arguments: list[str]) -> str:
    """Raises `UserError` without a login, or a network."""
    import wandb

    cfg = composed(arguments)
    try:
        entity = os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
        saved = workspace(cfg, str(entity)).save()
    except Exception as error:  # W&B's client raises its own kinds, and those of requests
        hint = "run `wandb login`, and `wandb sync` where runs are offline"
        raise UserError(f"W&B: {first_line(error)}; {hint}") from None
    return f"workspace {saved.url}"


def workspace(cfg: Config, entity: str) -> Any:
    """The workspace, as W&B's library has it, not saved yet."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    def bars(key: str) -> Any:
        by = panels.Config(METHOD)
        return panels.BarPlot(
            title=key, metrics=[panels.SummaryMetric(key)], groupby=by, groupby_aggfunc="mean", range_x=(0, 1)
        )

    sections = [
        workspaces.Section(name=title, panels=[bars(key) for key in keys(cfg, metrics)], is_open=place == 0)
        for place, (title, metrics) in enumerate(SECTIONS.items())
    ]
    losses = panels.LinePlot(title="loss", x="Step", y=["loss"], groupby=panels.Config(METHOD), groupby_aggfunc="mean")
    sections.append(workspaces.Section(name="Refinement by step", panels=[losses]))
    sections.append(workspaces.Section(name="Settings", panels=[panels.RunComparer(diff_only=True)]))
    groups = [f"{cfg.study.name}/{model}" for model in models_of(cfg.study)]
    shown = workspaces.RunsetSettings(filters=workspaces.And(workspaces.Metric("Group").isin(groups)))
    return workspaces.Workspace(
        entity=entity,
        project=cfg.tracking.project,
        name=f"holdfast {cfg.study.name}",
        sections=sections,
        runset_settings=shown,
    )


def keys(cfg: Config, metrics: list[str]) -> Iterator[str]:
    """Of a judged run's summary: of the clean model, and of each point of the study."""
    points = ["clean", *(f"{name}/{level:g}" for name, p in cfg.perturb.items() for level in p.levels)]
    for metric in metrics:
        yield from (f"{point}/{metric}" for point in points)
