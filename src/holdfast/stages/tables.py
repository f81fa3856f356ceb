"""Make every table and figure of a study, from its compact records alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.reporting.options import PRODUCTS
from holdfast.reporting.product import ESTIMATES, Files, Product, Results
from holdfast.reporting.records import PARTS, Evidence
from holdfast.runtime.files import replacing
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout
from holdfast.stages.judge import STAGE as JUDGE

if TYPE_CHECKING:
    from holdfast.reporting.measured import Measured


def run(run: Run) -> None:
    from holdfast.reporting.setting import Setting

    settings, evidence = run.cfg.tables, Evidence.of(run.layout, run.cfg)
    folder, figures = Path(settings.dir or run.out), Path(settings.figures or run.out)
    if "evidence" in settings.make:
        evidence.write(folder)
    if settings.make == ["evidence"]:
        return run.finish({"parts": list(PARTS)}, "compact records")
    measured = estimates(run, evidence)
    setting = Setting.of(measured, run.cfg)
    results = Results(measured, setting, evidence, run.cfg)
    for product in products(run.cfg):
        made = product.write(results, folder, figures)
        if isinstance(made, dict):
            for name in made:
                run.tracker.image(name, figures / f"{name}.png")
        elif made is not None:
            run.tracker.table(product.name, made.frame)
    run.finish({"records": measured.records}, f"{measured.records} records")


def products(cfg: Config) -> list[Product]:
    """The tables and figures that are asked for and that the study has."""
    asked = (PRODUCTS[name] for name in cfg.tables.make)
    return [product for product in asked if not isinstance(product, Files) and product.wanted(cfg)]


def estimates(run: Run, evidence: Evidence) -> Measured:
    """Read from where they were kept, or computed, and kept if asked for."""
    from holdfast.reporting.measured import Measured

    kept, asked = run.cfg.tables.estimates, "estimates" in run.cfg.tables.make
    if kept and not asked:
        return Measured.load(Path(kept))
    measured = Measured.of(evidence.frame("records"), run.cfg)
    if asked:
        metrics, index = (Path(kept or run.out, name) for name in ESTIMATES)
        with replacing(metrics) as first, replacing(index) as second:
            measured.save(first, second)
    return measured


def inputs(cfg: Config) -> models.Inputs:
    evidence, make, source = Evidence.of(Layout.of(cfg), cfg), cfg.tables.make, cfg.tables.source
    if source is not None and not Path(source).is_dir():
        raise UserError(f"tables.source={source}: no such folder; tables.make=[evidence] tables.dir=… writes one")
    kept = cfg.tables.estimates if "estimates" not in make and "evidence" not in make else None
    needed = {Path(kept, name): "tables" for name in ESTIMATES} if kept else evidence.files("records")
    made = [product for name in make if (product := PRODUCTS[name]).wanted(cfg)]
    for part in dict.fromkeys(part for product in made for part in product.parts):
        needed |= evidence.files(part)
    return needed


READS = ("study", "tables", "claims", "probe", "evaluate", "perturb", "judge")
STAGE = Stage("tables", run, READS, (), inputs, JUDGE)
main = STAGE.main
