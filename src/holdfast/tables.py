"""Tables stage: every table and figure of a study, computed from its records and probes alone."""

from __future__ import annotations

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
    for name, table in made.items():
        for suffix, text in table.texts().items():
            write_text(run.out / f"{name}.{suffix}", text)
        run.tracker.table(name, table.frame)
    write_text(run.out / "main.txt", terminal(made["main"].frame, setting))
    rises = pd.concat(map(pd.read_parquet, run.layout.rises(study)), ignore_index=True)
    for name, figure in {
        "dose_response": dose_response_figure(made["dose_response"].frame, study.reference),
        "sensitivity": sensitivity_figure(rises),
    }.items():
        for suffix in ("png", "pdf"):
            with replacing(run.layout.figures / f"{name}.{suffix}") as path:
                save(figure, path, suffix)
    points = {family: point and f"{point['perturbation']} {point['level']:g}" for family, point in headline.items()}
    run.finish({"headline": points, "records": len(records)}, f"{len(records)} records")


def inputs(cfg: DictConfig) -> models.Inputs:
    layout = Layout.of(cfg)
    probes = dict.fromkeys(layout.rises(cfg.study), "probe")
    return {**dict.fromkeys(layout.records(cfg.study), "evaluate"), **probes}


if __name__ == "__main__":
    launch("tables", run, inputs)
