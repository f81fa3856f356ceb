"""Tables stage: every table and figure of a study, computed from its records and probes alone."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from holdfast import models
from holdfast.paths import Layout
from holdfast.stage import Run, launch, replacing, write_text


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.metrics.rates import by_seed, headline_points
    from holdfast.reporting import dose_response, main_table, render, terminal
    from holdfast.reporting.figures import dose_response_figure, save, sensitivity_figure

    study, settings = run.cfg.study, run.cfg.tables
    records = pd.concat(map(pd.read_parquet, run.layout.records(study)), ignore_index=True)
    metrics = by_seed(records, settings.over_refusal)
    headline = headline_points(metrics, study.reference, settings.headline_asr)
    setting = render.Setting.of(records, run.cfg, headline)
    made = {"main": main_table(metrics, headline, setting), "dose_response": dose_response(metrics, setting)}
    for name in [name for name in made if name in settings.make]:
        for suffix, text in made[name].texts().items():
            write_text(Path(settings.dir or run.out, f"{name}.{suffix}"), text)
        run.tracker.table(name, made[name].frame)
    if "main" in settings.make:
        write_text(Path(settings.dir or run.out, "main.txt"), terminal(made["main"].frame, setting))
    if "figures" in settings.make:
        rises = pd.concat(map(pd.read_parquet, run.layout.rises(study)), ignore_index=True)
        figures = {
            "dose_response": dose_response_figure(made["dose_response"].frame, study.reference),
            "sensitivity": sensitivity_figure(rises),
        }
        for name, figure in figures.items():
            for suffix in ("png", "pdf"):
                with replacing(Path(settings.figures or run.out, f"{name}.{suffix}")) as path:
                    save(figure, path, suffix)
    points = {family: point and f"{point['perturbation']} {point['level']:g}" for family, point in headline.items()}
    run.finish({"headline": points, "records": len(records)}, f"{len(records)} records")


def inputs(cfg: DictConfig) -> models.Inputs:
    layout = Layout.of(cfg)
    probes = dict.fromkeys(layout.rises(cfg.study), "probe")
    return {**dict.fromkeys(layout.records(cfg.study), "evaluate"), **probes}


if __name__ == "__main__":
    launch("tables", run, inputs)
