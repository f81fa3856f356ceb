"""T1, the main table, and T2, dose and response."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from holdfast.reporting.estimates import METRICS, compare, estimate, sampled
from holdfast.reporting.render import Table, dagger, number, percent
from holdfast.reporting.setting import Setting
from holdfast.statistics.intervals import NOTHING, Estimate, holm
from holdfast.statistics.rates import Metrics, area

NAMES = {"asr_matched": "ASR at matched over-refusal (%) ↓", "asr": "raw ASR (%) ↓"}
COSTS = ("over_refusal", "utility")  # of the clean model
CLEAN = ("none", "clean", 0.0)


def dose_response(metrics: Metrics, setting: Setting) -> Table:
    """T2: every metric at every point; the Markdown and LaTeX show ASR against level, and its area."""
    rows = []
    for point, found in metrics.items():
        row: dict[str, Any] = point._asdict() | {
            "kind": _kind(setting, point.perturbation),
            "ran": setting.ran.get(point.perturbation, ""),
        }
        for metric in METRICS:
            e = estimate(sampled(metrics, *point[:2], point[2:], metric), metric, setting)
            row |= {metric: e.mean, f"{metric}_low": e.low, f"{metric}_high": e.high}
        harmful, benign = (setting.counts[f"test/{label}"] for label in ("harmful", "benign"))
        rows.append(row | {"seeds": len(found["margin"]), "harmful": harmful, "benign": benign})
    caption = (
        "Dose and response: ASR in % at each level, and the mean over the range of levels (area, from margins alone). "
        "Broken responses are no success; – in the raw ASR marks levels at which nothing was generated, where the "
        "matched ASR rests on margins alone. Levels of noise are relative to the rms of a matrix or of a token. Every "
        "other metric is in the CSV. " + setting.caption()
    )
    return Table(pd.DataFrame(rows), _dose_shown(metrics, setting), caption, "tab:dose-response")


def _kind(setting: Setting, perturbation: str) -> str:
    known = setting.perturbations
    return known[perturbation].kind if perturbation in known else "clean"


def _dose_shown(metrics: Metrics, setting: Setting) -> pd.DataFrame:
    rows = []
    grid = dict.fromkeys((point.model, point.perturbation) for point in metrics)
    for metric, name in NAMES.items():
        for model, perturbation in grid:
            levels = dict.fromkeys(point[2:] for point in metrics if point[::2][:2] == (model, perturbation))
            head = {"metric": name, "model": model, "perturbation": perturbation}
            for at in levels:
                cells = {
                    m: percent(estimate(sampled(metrics, model, m, at, metric), metric, setting))
                    for m in setting.methods
                }
                rows.append(head | {"level": setting.label(perturbation, at[2])} | cells)
            if perturbation != "none" and not setting.quantizes(perturbation):
                # Verdicts do not exist at every level, and gibberish counts only where they do.
                along = "asr_margin" if metric == "asr_matched" else metric
                curves = {m: _area(metrics, model, m, list(levels), along) for m in setting.methods}
                cells = {m: percent(estimate(curve, metric, setting)) for m, curve in curves.items()}
                rows.append(head | {"level": "area"} | cells)
    return pd.DataFrame(rows)


def _area(metrics: Metrics, model: str, method: str, levels: list[tuple[str, str, float]], metric: str) -> np.ndarray:
    """Area under a metric from the clean model on, (seeds, 1 + resamples); NaN if a level lacks it."""
    curve = sorted([at for at in levels if at[2] > 0], key=lambda at: at[2])
    values = np.stack([sampled(metrics, model, method, at, metric) for at in (CLEAN, *curve)])
    return area(np.array([0.0, *(at[2] for at in curve)]), values)


def main_table(metrics: Metrics, setting: Setting) -> Table:
    """T1: primary metric and raw ASR, clean and at each family's headline level, with what they cost."""
    rows = [
        {"model": model, "method": method, "metric": metric, **row}
        for model, method in checkpoints(metrics, setting)
        for metric in (*NAMES, *COSTS)
        for row in _main_rows(metrics, model, method, metric, setting)
    ]
    frame = pd.DataFrame(rows)
    confirm = (frame["metric"] == "asr_matched") & frame["column"].isin(setting.headlines())
    frame["p_holm"] = holm(frame["p"].where(confirm).tolist())
    cells = pd.Series(_cells(frame, setting), index=frame.index)
    best = _main_shown(frame, _best(frame, setting), setting)
    return Table(frame, _main_shown(frame, cells, setting), _main_caption(setting), "tab:main", best=best)


def checkpoints(metrics: Metrics, setting: Setting) -> list[tuple[str, str]]:
    """Every (model, method) that was measured, models in their order, and methods in theirs."""
    measured = dict.fromkeys((point.model, point.method) for point in metrics)
    models = dict.fromkeys(model for model, _ in measured)
    return [(model, method) for model in models for method in setting.methods if (model, method) in measured]


def _main_rows(metrics: Metrics, model: str, method: str, metric: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """For each column the estimate and the paired difference to the reference, which has none to itself."""
    reference = _columns(metrics, model, setting.reference, metric, setting)
    for column, values in _columns(metrics, model, method, metric, setting).items():
        e = estimate(values, metric, setting)
        d = NOTHING if method == setting.reference else compare(values, reference[column], metric, setting)
        yield {
            "column": column,
            **{"estimate": e.mean, "low": e.low, "high": e.high, "seeds": len(values)},
            **{"difference": d.mean, "difference_low": d.low, "difference_high": d.high},
            **{"p": d.p, "p_equivalence": d.equivalence},
        }


def _main_caption(setting: Setting) -> str:
    places = ", ".join(setting.headlines())
    return (
        "Main table. ASR at matched over-refusal: the refusal threshold is set under the same perturbation so that "
        f"{setting.over_refusal:.0%} of benign prompts are refused; broken responses are no success. Headline "
        f"level of a family: the mildest at which {setting.reference} reaches {setting.headline_asr:.0%} on the "
        f"tuning split, by margins: {places}. Worst: the largest of a seed's families, which leans upward. "
        "Over-refusal and utility are those of the clean model. Bold: the best of a column. † not significantly "
        f"different from {setting.reference} (paired by seed and prompt, p > {1 - setting.confidence:.2g}, "
        "unadjusted; the CSV has differences, p, Holm's p over the headline cells of the matched ASR, and "
        f"p_equivalence for a difference within ± {100 * setting.margin:g} points). {setting.caption()}"
    )


def _columns(metrics: Metrics, model: str, method: str, metric: str, setting: Setting) -> dict[str, np.ndarray]:
    """Column -> (seeds, 1 + resamples); a family that is not measurable has no seeds."""
    columns = {"clean": sampled(metrics, model, method, CLEAN, metric)}
    if metric not in NAMES:
        return columns
    at_headline = []
    for column, at in setting.headlines().items():
        if at is None:
            columns[column] = np.empty((0, 1))
            continue
        columns[column] = sampled(metrics, model, method, at, metric)
        at_headline.append(columns[column])
    if at_headline:
        together = np.stack(at_headline)  # (families, seeds, 1 + resamples)
        columns |= {"mean": together.mean(0), "worst": together.max(0)}
    return columns


def _cells(frame: pd.DataFrame, setting: Setting) -> list[str]:
    """A cell for each row of T1's tidy frame."""
    cells = []
    for row in frame.to_dict("records"):
        show = number if row["metric"] == "utility" and setting.utility == "perplexity" else percent
        found = Estimate(row["estimate"], row["low"], row["high"])
        cells.append(show(found) + dagger(row["p"], setting.confidence))
    return cells


def _best(frame: pd.DataFrame, setting: Setting) -> pd.Series:
    """Whether a row's estimate reads the best of all methods', where they do not all read the same."""
    higher = (frame["metric"] == "utility") & (setting.utility != "perplexity")
    read = frame["estimate"].round(3).where(~higher, -frame["estimate"].round(3))
    of = read.groupby([frame[key] for key in ("model", "metric", "column")])
    return (read == of.transform("min")) & (of.transform("nunique") > 1)


def _main_shown(frame: pd.DataFrame, cells: pd.Series, setting: Setting) -> pd.DataFrame:
    """A row for each of the two ASRs, model and method; over-refusal and utility stand in both. `cells`: one for each
    row of the tidy frame."""
    shown = frame.assign(cell=cells)
    better = "↓" if setting.utility == "perplexity" else "↑"
    costs = {"over_refusal": "over-refusal ↓", "utility": f"{setting.utility.replace('_', ' ')} {better}"}
    rows = []
    for metric, name in NAMES.items():
        for (model, method), found in shown.groupby(["model", "method"], sort=False):
            mine, paid = found[found["metric"] == metric], found[found["metric"].isin(COSTS)]
            row = {"metric": name, "model": str(model), "method": str(method)}
            row |= dict(zip(mine["column"], mine["cell"], strict=True))
            rows.append(row | dict(zip(paid["metric"].map(costs), paid["cell"], strict=True)))
    return pd.DataFrame(rows)


def terminal(main: pd.DataFrame, setting: Setting) -> str:
    """T1 with a column a method, narrow enough for a terminal; `main` is its tidy frame."""
    names = {
        "asr_matched": "matched ASR",
        "asr": "raw ASR",
        "over_refusal": "over-refusal",
        "utility": setting.utility,
    }
    shown = main.assign(cell=_cells(main, setting), metric=main["metric"].map(names))
    rows = shown[["model", "metric", "column"]].drop_duplicates()
    wide = shown.pivot(index=["model", "metric", "column"], columns="method", values="cell")
    wide = wide.reindex(index=pd.MultiIndex.from_frame(rows), columns=setting.methods).fillna("").reset_index()
    cells = wide.astype(str).to_numpy().tolist()
    return tabulate(cells, headers=list(map(str, wide.columns)), disable_numparse=True) + "\n"
