"""Tables stage: every table and figure of a study, computed from its compact records alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.reporting.records import PARTS, Evidence
from holdfast.runtime.files import replacing, write_text
from holdfast.runtime.run import Run, Stage
from holdfast.settings.paths import Layout
from holdfast.settings.schema import ESTIMATES, PRODUCTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from holdfast.reporting import Measured, Setting, Table


def run(run: Run) -> None:
    from holdfast.reporting import Setting, terminal, terminal_claims
    from holdfast.reporting.figures import save

    settings, evidence = run.cfg.tables, Evidence.of(run.layout, run.cfg)
    folder = Path(settings.dir or run.out)
    if "evidence" in settings.make:
        evidence.write(folder)
    if list(settings.make) == ["evidence"]:
        return run.finish({"parts": list(PARTS)}, "compact records")
    measured = estimates(run, evidence)
    setting = Setting.of(measured, run.cfg)
    makers = tables(measured, setting, evidence, run.cfg)
    made = {name: make() for name, make in makers.items() if name in settings.make}
    for name, table in made.items():
        write(table, folder, name)
        run.tracker.table(name, table.frame)
    for name, lines in (("main", terminal), ("claims", terminal_claims)):
        if name in made:
            write_text(folder / f"{name}.txt", lines(made[name].frame, setting))
    if "cost" in made:
        from holdfast.reporting import timing

        write(timing(evidence.frame("timing"), settings.confidence), folder, "timing", ("csv", "md"))
    for name, figure in (
        figures(makers, measured, setting, evidence, run.cfg).items() if "figures" in settings.make else ()
    ):
        for suffix in ("png", "pdf"):
            with replacing(Path(settings.figures or run.out, f"{name}.{suffix}")) as path:
                save(figure, path, suffix)
        run.tracker.image(name, Path(settings.figures or run.out, f"{name}.png"))
    points = {family: point and f"{point[0]} {point[1]:g}" for family, point in setting.headline.items()}
    run.finish({"headline": points, "records": measured.records}, f"{measured.records} records")


def estimates(run: Run, evidence: Evidence) -> Measured:
    """Read from where they were kept, or computed, and kept if asked for."""
    from holdfast.reporting import Measured

    kept, asked = run.cfg.tables.estimates, "estimates" in run.cfg.tables.make
    if kept and not asked:
        return Measured.load(Path(kept))
    measured = Measured.of(evidence.frame("records"), run.cfg)
    if asked:
        metrics, index = (Path(kept or run.out, name) for name in ESTIMATES)
        with replacing(metrics) as first, replacing(index) as second:
            measured.save(first, second)
    return measured


def tables(
    measured: Measured, setting: Setting, evidence: Evidence, cfg: DictConfig
) -> dict[str, Callable[[], Table]]:
    """What makes each table that the study has."""
    from holdfast import reporting

    def frames(product: str) -> dict[str, Any]:
        return {part: evidence.frame(part) for part in PRODUCTS[product]}

    makers: dict[str, Callable[[], Table]] = {
        "main": lambda: reporting.main_table(measured.metrics, setting),
        "dose_response": lambda: reporting.dose_response(measured.metrics, setting),
        "quantization": lambda: reporting.quantization(measured.metrics, setting),
        "selection": lambda: reporting.selection(measured.metrics, setting, frames("selection"), cfg),
        "cost": lambda: reporting.cost(measured.metrics, setting, evidence.frame("costs"), cfg),
        "claims": lambda: reporting.claims_table(measured.metrics, setting, frames("claims"), cfg),
        "optimizers": lambda: reporting.optimizers(measured.metrics, setting, frames("optimizers"), cfg),
        "judges": lambda: reporting.judges(evidence.frame("records"), setting),
        "tasks": lambda: reporting.tasks(evidence.frame("tasks"), setting),
    }
    lacking = ["optimizers"] * (not cfg.claims.optimizers) + ["tasks"] * (not cfg.evaluate.tasks)
    return {name: make for name, make in makers.items() if name not in lacking}


def figures(
    makers: dict[str, Callable[[], Table]], measured: Measured, setting: Setting, evidence: Evidence, cfg: DictConfig
) -> dict[str, Figure]:
    from holdfast.reporting.estimates import headline
    from holdfast.reporting.figures import (
        cost_figure,
        dose_response_figure,
        lengths_figure,
        sensitivity_figure,
        steps_figure,
    )
    from holdfast.reporting.trade_off import trade_off_figure

    judged = list(cfg.claims.judged)
    # Where claims are judged; a family that they leave out is shown at its headline level.
    points = {at[1]: at for at in setting.headlines().values() if at}
    points |= {family: at for family, at in headline(measured.metrics, cfg.claims).items() if at}
    spent, reference = makers["cost"]().frame, cfg.study.reference
    rises = evidence.frame("sensitivity")
    made = {
        "dose_response": dose_response_figure(makers["dose_response"]().frame, reference),
        "trade_off": trade_off_figure(evidence.frame("records"), setting, list(points.values()), judged),
        "sensitivity": sensitivity_figure(rises[(rises["kind"] == "weights") & (rises["sigma"] == cfg.probe.sigma)]),
        "cost": cost_figure(spent, reference, judged),
    }
    if len(cfg.claims.lengths) > 1:
        made["lengths"] = lengths_figure(spent, evidence.frame("costs"), list(cfg.claims.lengths))
    if cfg.claims.budgets:
        made["steps"] = steps_figure(spent, reference, {k: list(v) for k, v in cfg.claims.budgets.items()})
    return made


def write(table: Table, folder: Path, name: str, suffixes: tuple[str, ...] = ("csv", "md", "tex", "html")) -> None:
    texts = table.texts()
    for suffix in suffixes:
        write_text(folder / f"{name}.{suffix}", texts[suffix])


def inputs(cfg: DictConfig) -> models.Inputs:
    evidence, make, source = Evidence.of(Layout.of(cfg), cfg), cfg.tables.make, cfg.tables.source
    if source is not None and not Path(source).is_dir():
        raise UserError(f"tables.source={source}: no such folder; tables.make=[evidence] tables.dir=… writes one")
    kept = cfg.tables.estimates if "estimates" not in make and "evidence" not in make else None
    needed = {Path(kept, name): "tables" for name in ESTIMATES} if kept else evidence.files("records")
    made = [product for product in make if product != "tasks" or cfg.evaluate.tasks]
    for part in dict.fromkeys(part for product in made for part in PRODUCTS[product]):
        needed |= evidence.files(part)
    return needed


STAGE = Stage("tables", run, ("study", "tables", "claims", "probe", "evaluate", "perturb", "judge"), (), inputs)
main = STAGE.main
