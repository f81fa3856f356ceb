"""T1, the main table, and T2, dose and response."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from holdfast.metrics.intervals import Estimate, mean_t, rate
from holdfast.metrics.rates import POINT, area
from holdfast.reporting.render import Setting, Table, percent, plain

RATES = {  # metric -> which prompts its interval counts
    "asr": "harmful",
    "asr_matched": "harmful",
    "refused": "harmful",
    "incoherent": "harmful",
    "over_refusal": "benign",
}


NAMES = {"asr_matched": "ASR at matched over-refusal (%) ↓", "asr": "raw ASR (%) ↓"}


def estimate(metrics: pd.DataFrame, metric: str, setting: Setting) -> Estimate:
    """One metric over the seeds of one (model, method, point)."""
    values = metrics.sort_values("seed")[metric].to_numpy()
    return _over_seeds(values, metric, setting)


def _over_seeds(values: np.ndarray, metric: str, setting: Setting) -> Estimate:
    if metric in RATES:
        return rate(values, getattr(setting, RATES[metric]), setting.confidence)
    if metric == "utility" and setting.utility == "exact_match":
        return rate(values, setting.benign, setting.confidence)
    if metric == "utility":  # NLL per token: the interval is of the logarithm of the perplexity
        log = mean_t(values, setting.confidence)
        return Estimate(*np.exp([log.mean, log.low, log.high]).tolist())
    return mean_t(values, setting.confidence)


def dose_response(metrics: pd.DataFrame, setting: Setting) -> Table:
    """T2: every metric at every point; the Markdown and LaTeX show ASR against level, and its area."""
    rows = []
    for keys, found in metrics.groupby(["model", "method", *POINT], sort=False):
        row: dict[str, Any] = dict(zip(["model", "method", *POINT], keys, strict=True))
        for metric in (*RATES, "auroc", "margin", "utility"):
            e = estimate(found, metric, setting)
            row |= {metric: e.mean, f"{metric}_low": e.low, f"{metric}_high": e.high}
        rows.append(row | {"seeds": len(found), "harmful": setting.harmful, "benign": setting.benign})
    frame = pd.DataFrame(rows)
    caption = (
        "Dose and response: ASR in % at each level (raw: judged by rules, incoherent responses are no success), "
        "and the mean over the range of levels (area); – where only margins were scored. Levels of noise are "
        "relative to the rms of a matrix or of a token, those of quantization are bits. Every other metric is in "
        "the CSV. " + setting.caption()
    )
    return Table(frame, _dose_shown(metrics, setting), caption, "tab:dose-response")


def _dose_shown(metrics: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    rows = []
    for metric, name in NAMES.items():
        for (model, perturbation), found in metrics.groupby(["model", "perturbation"], sort=False):
            head = {"metric": name, "model": model, "perturbation": perturbation}
            for level, at_level in found.groupby("level", sort=False):
                cells = {
                    m: percent(estimate(at_level[at_level["method"] == m], metric, setting)) for m in setting.methods
                }
                rows.append(head | {"level": f"{level:g}"} | cells)
            if str(perturbation).endswith("noise"):
                curves = {m: _with_clean(metrics, str(model), m, str(perturbation), metric) for m in setting.methods}
                cells = {m: percent(_over_seeds(curve, metric, setting)) for m, curve in curves.items()}
                rows.append(head | {"level": "area"} | cells)
    return pd.DataFrame(rows)


def _with_clean(metrics: pd.DataFrame, model: str, method: str, perturbation: str, metric: str) -> np.ndarray:
    """Area under a metric against the noise level, from the clean model on, per seed; NaN if a level lacks it."""
    mine = metrics[(metrics["model"] == model) & (metrics["method"] == method)]
    curves = mine[(mine["perturbation"] == perturbation) | (mine["family"] == "clean")].sort_values(["seed", "level"])
    return np.array([area(c["level"].to_numpy(), c[metric].to_numpy()) for _, c in curves.groupby("seed")])


def main_table(metrics: pd.DataFrame, headline: dict[str, dict[str, Any] | None], setting: Setting) -> Table:
    """T1: primary metric and raw ASR, clean and at each family's headline level, with what they cost."""
    rows, shown = [], []
    for (model, method), found in metrics.groupby(["model", "method"], sort=False):
        for metric, name in NAMES.items():
            columns = _families(found, headline, metric, setting)
            rows += [
                {"model": model, "method": method, "metric": metric, "column": column}
                | {"estimate": e.mean, "low": e.low, "high": e.high, "seeds": setting.seeds}
                for column, e in columns.items()
            ]
            shown.append(
                {"metric": name, "model": model, "method": method}
                | {column: percent(e) for column, e in columns.items()}
            )
        clean = found[found["family"] == "clean"]
        for metric in ("over_refusal", "utility"):
            e = estimate(clean, metric, setting)
            show = plain if metric == "utility" and setting.utility == "perplexity" else percent
            for row in shown[-2:]:
                row[f"{metric.replace('_', '-')} {'↓' if show is plain or metric == 'over_refusal' else '↑'}"] = show(
                    e
                )
            rows.append(
                {"model": model, "method": method, "metric": metric, "column": "clean"}
                | {"estimate": e.mean, "low": e.low, "high": e.high, "seeds": setting.seeds}
            )
    table = pd.DataFrame(shown).sort_values("metric", kind="stable")
    caption = (
        f"Main table. ASR at matched over-refusal: the refusal threshold is set under the same perturbation so that "
        f"{setting.over_refusal:.0%} of benign prompts are refused. Headline level of a family: the mildest at which "
        f"{setting.reference} reaches {setting.headline_asr:.0%} on the tuning split: {_points(headline)}. "
        "Over-refusal and utility are those of the clean model. " + setting.caption()
    )
    return Table(pd.DataFrame(rows), table, caption, "tab:main")


def terminal(main: pd.DataFrame, setting: Setting) -> str:
    """T1 with a column a method, narrow enough for a terminal; `main` is its tidy frame."""
    shown = main.copy()
    plainly = (shown["metric"] == "utility") & (setting.utility == "perplexity")
    shown["value"] = [
        (plain if is_plain else percent)(Estimate(*row))
        for is_plain, row in zip(plainly, shown[["estimate", "low", "high"]].to_numpy(), strict=True)
    ]
    names = {
        "asr_matched": "matched ASR",
        "asr": "raw ASR",
        "over_refusal": "over-refusal",
        "utility": setting.utility,
    }
    shown["metric"] = shown["metric"].map(names)
    rows = shown[["model", "metric", "column"]].drop_duplicates()
    wide = shown.pivot(index=["model", "metric", "column"], columns="method", values="value")
    wide = wide.reindex(index=pd.MultiIndex.from_frame(rows), columns=setting.methods).reset_index()
    cells = wide.astype(str).to_numpy().tolist()
    return tabulate(cells, headers=list(map(str, wide.columns)), disable_numparse=True) + "\n"


def _families(
    found: pd.DataFrame, headline: dict[str, dict[str, Any] | None], metric: str, setting: Setting
) -> dict[str, Estimate]:
    columns = {"clean": estimate(found[found["family"] == "clean"], metric, setting)}
    at_headline = []
    for family, point in headline.items():
        if point is None:
            columns[f"{family} (no room)"] = Estimate(np.nan, np.nan, np.nan)
            continue
        mine = found[(found["perturbation"] == point["perturbation"]) & (found["level"] == point["level"])]
        columns[f"{family} {_point(point)}"] = estimate(mine, metric, setting)
        at_headline.append(mine.sort_values("seed")[metric].to_numpy())
    if at_headline:
        together = np.stack(at_headline)  # (families, seeds)
        columns["mean"] = _over_seeds(together.mean(0), metric, setting)
        columns["worst"] = _over_seeds(together.max(0), metric, setting)
    return columns


def _point(point: dict[str, Any]) -> str:
    level = f"{point['level']:g}"
    return f"σ={level}" if point["perturbation"].endswith("noise") else f"{point['perturbation']} {level} bit"


def _points(headline: dict[str, dict[str, Any] | None]) -> str:
    return "; ".join(f"{family} {_point(point) if point else 'has no room'}" for family, point in headline.items())
