"""Measure a model as it is on the grid of study=measure, alone or beside another, and say what gives way first.

holdfast evaluate model=<folder or Hub id> [against=<folder or Hub id>] [overrides, as of study=measure]

Both answer the same prompts under the same noise, and one referee, `against`, says of both what is broken. Where
prompts come without answers, utility is of those that `against` gives. With `method=` or `hydra.run.dir=` the stage
runs alone.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from holdfast.commands.compare import Study, metrics_of
from holdfast.commands.own_model import OwnModel, parsed, run
from holdfast.errors import UserError
from holdfast.models.load import fetched
from holdfast.settings.compose import composed
from holdfast.settings.overrides import quoted
from holdfast.settings.paths import Layout
from holdfast.stages.tables import products

if TYPE_CHECKING:
    from holdfast.reporting.setting import Setting
    from holdfast.statistics.rates import Metrics

BASE = ("study=measure", "model=own")  # what all overrides come on top of
OF_ONE = ("model.path=", "model.revision=", "model.origin=")  # of no two models


def main(arguments: list[str]) -> str:
    """Runs the study `measure` of one model or two, resuming what an earlier call left; gives what to tell the
    user."""
    asked, overrides = parsed(arguments, ("model", "against"))
    if not asked["model"]:
        raise UserError("model: no value is given; holdfast evaluate model=<folder or Hub id> against=<another>")
    models = [OwnModel.of(asked[key]) for key in ("against", "model") if asked[key]]
    names, plans, referee = _names(models), [], list[str]()
    if len(models) > 1 and (wrong := next((o for o in overrides if o.startswith(OF_ONE)), None)):
        raise UserError(f"{wrong}: would be given to both models; leave it out, or measure each alone")
    for model, name in zip(models, names, strict=True):
        own = [f"study.name=evaluate-{name}", *model.overrides, *referee, *overrides]
        cfg = composed([*BASE, *own])
        # One that is not to be had says so before anything is begun.
        first = quoted(fetched(model.path, cfg.model.revision).absolute())
        # One referee of both; and utility is of the same answers, those of the first.
        referee = referee or [f"referee.path={first}", f"answer.path={first}"]
        plans.append((own, Study(name, Layout.of(cfg), cfg)))
    for own, study in plans:
        folder = study.layout.root / "tables"
        run("measure", own, study.layout, [folder / made.name / "metrics.json" for made in products(study.cfg)])
    return _told([study for _, study in plans])


def _names(models: list[OwnModel]) -> list[str]:
    """The last part of each path, or as many parts as tell the models apart."""
    for parts in range(1, 1 + max(model.path.count("/") + 1 for model in models)):
        names = [model.name(parts) for model in models]
        if len(set(names)) == len(models):
            return names
    raise UserError(f"against={models[0].given}: cannot be told from model={models[1].given}; give another")


def _told(studies: list[Study]) -> str:
    """The main table, of two models with both as rows; what gives way first; and where the tables are."""
    from holdfast.reporting.giving_way import giving_way
    from holdfast.reporting.product import write
    from holdfast.reporting.tables import main_table, terminal

    metrics, setting = _named(studies)
    table, folders = main_table(metrics, setting), [os.path.relpath(study.layout.tables) for study in studies]
    if len(studies) > 1:
        beside = f"against-{studies[0].name}"
        write(table, studies[1].layout.tables, beside)
        folders = [f"{folders[1]} (the one above: {beside})", folders[0]]
    told = [
        terminal(table.frame, setting),
        giving_way(metrics, setting),
        f"evaluate tables in {' and '.join(folders)}",
    ]
    return "\n".join(told)


def _named(studies: list[Study]) -> tuple[Metrics, Setting]:
    """The metrics of one or two studies as those of one model, whose methods have the studies' names."""
    metrics, setting, same = metrics_of(studies)
    names = [study.name for study in studies]
    if not same:
        raise UserError(f"{' and '.join(names)} were not asked the same prompts; give both the same data")
    title = " against ".join(reversed(names))
    found = {
        point._replace(model=title, method=names[0] if len(names) == 1 else point.method): values
        for point, values in metrics.items()
    }
    return found, dataclasses.replace(setting, methods=names, reference=names[0])
