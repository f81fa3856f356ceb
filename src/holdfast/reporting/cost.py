"""T5: what each method spent and what it got for it; seconds and memory stand in a table of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting.cautions import cautions_of_costs
from holdfast.reporting.estimates import at_of, compare, estimate, judged_points, sampled
from holdfast.reporting.render import Table, percent, points
from holdfast.reporting.setting import Setting
from holdfast.settings.options import Config
from holdfast.statistics.intervals import NOTHING, Estimate, student
from holdfast.statistics.rates import Metrics

SPENT = ("steps", "forwards", "sequences", "selection", "overhead")
CAPTION = (
    "Cost and effect. Forwards: forward-equivalents of a batch, a backward counting as two; sequences: of one "
    "sequence. Overhead: sequences of refinement and of the measurements that its layers were selected by, over "
    "those of alignment (– for a model that came aligned). Effect: the ASR where each family of the claims is judged, "
    "and its difference to {reference} in points, * decided (its interval excludes 0). ✓ within {overhead:.1%} of "
    "overhead, which is what the paper reports; ★ the lowest of a family. "
)
TIMING_CAPTION = (
    "Seconds and peak memory, as measured on the machine that ran the study: not reproducible to the byte. Extra "
    "time: the method's own seconds over those of alignment. Memory: what the method took above the loaded model."
)


def overheads(costs: pd.DataFrame, cfg: Config) -> pd.DataFrame:
    """Model, method, seed, steps, forwards, sequences, selection (sequences) and overhead, a share of alignment's
    sequences; the reference spends nothing."""
    run = ["model", "seed"]
    base = {
        stage: costs[costs["stage"] == stage].set_index(run)["sequences"] for stage in ("align", "probe", "online")
    }
    found = costs[costs["stage"] == "refine"].copy()
    at = pd.MultiIndex.from_frame(found[run])
    online = found["method"] == cfg.claims.methods.online
    measured = np.where(online, base["online"].reindex(at), base["probe"].reindex(at))
    found["selection"] = np.where(found["stability"].isna(), 0.0, measured)  # nothing chosen, nothing spent on it
    found["overhead"] = (found["sequences"] + found["selection"]) / base["align"].reindex(at).to_numpy()
    return found[["model", "method", "seed", *SPENT]]


def cost(metrics: Metrics, setting: Setting, costs: pd.DataFrame, cfg: Config) -> Table:
    """T5."""
    spent = overheads(costs, cfg).groupby(["model", "method"])[list(SPENT)].mean()
    rows = [
        {"model": model, "method": method, **effect}
        for model, method in dict.fromkeys((point.model, point.method) for point in metrics)
        for effect in _effects(metrics, setting, model, method)
    ]
    effects = pd.DataFrame(rows)
    frame = effects.join(spent, on=["model", "method"]).fillna(dict.fromkeys(SPENT, 0.0))
    frame["within"] = frame["overhead"] <= cfg.claims.overhead
    rivals = frame[frame["method"] != setting.reference]
    best = rivals.groupby(["model", "family"], sort=False)["estimate"].transform("min")
    frame["best"] = (rivals["estimate"] == best).reindex(frame.index, fill_value=False)
    caption = CAPTION.format(reference=setting.reference, overhead=cfg.claims.overhead)
    caption += "".join(f"Caution: {told}. " for told in cautions_of_costs(costs, setting.reference))
    return Table(frame, _shown(frame, setting), caption + setting.caption(), "tab:cost")


def _effects(metrics: Metrics, setting: Setting, model: str, method: str) -> list[dict[str, Any]]:
    rows = []
    for family, one in judged_points(metrics, setting, model).items():
        at = at_of(one)
        values, reference = (sampled(metrics, model, m, at, "asr") for m in (method, setting.reference))
        e = estimate(values, "asr", setting)
        d = NOTHING if method == setting.reference else compare(values, reference, "asr", setting)
        rows.append(
            {"family": family, "point": setting.label(at[0], at[2]) if at else "(not run)"}
            | {"estimate": e.mean, "low": e.low, "high": e.high}
            | {"difference": d.mean, "difference_low": d.low, "difference_high": d.high, "p": d.p}
        )
    return rows


def _shown(frame: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    rows = []
    for (model, method), found in frame.groupby(["model", "method"], sort=False):
        spent = found.iloc[0]
        row: dict[str, Any] = {"model": model, "method": method}
        row |= {name: f"{spent[name]:,.0f}" for name in SPENT[:-1]}
        own = method != setting.reference
        over = f"{100 * spent['overhead']:.1f}" if np.isfinite(spent["overhead"]) else "–"
        row["overhead (%)"] = over + (" ✓" if own and spent["within"] else "")
        for one in found.to_dict("records"):
            name, decided = one["family"], one["p"] < 1 - setting.confidence
            row[name] = percent(Estimate(one["estimate"], one["low"], one["high"])) + " ★" * one["best"]
            d = Estimate(one["difference"], one["difference_low"], one["difference_high"])
            row[f"Δ {name}"] = points(d) + " *" * decided
        rows.append(row)
    return pd.DataFrame(rows)


def timing(times: pd.DataFrame, confidence: float) -> Table:
    """Seconds, extra time and memory of each stage that made or refined a model; a mean over seeds."""
    align = times[times["stage"] == "align"].set_index(["model", "seed"])
    own = pd.MultiIndex.from_frame(times[["model", "seed"]])
    seconds = times["method_seconds"].fillna(times["seconds"])
    base = align["method_seconds"].fillna(align["seconds"]).reindex(own).to_numpy()
    extra = (100 * seconds / base).where(times["stage"] != "align")
    rows = times.assign(method_seconds=seconds, extra_percent=extra)
    names = {
        "seconds": "seconds (process)",
        "method_seconds": "seconds",
        "extra_percent": "extra time (%)",
        "method_peak_mib": "additional memory (MiB)",
        "peak_rss_mib": "peak memory (MiB)",
    }
    made, shown = [], []
    for (model, stage, method), runs in rows.groupby(["model", "stage", "method"], sort=False, observed=True):
        head = {"model": model, "stage": stage, "method": method}
        found = {name: student(runs[name].to_numpy(dtype=float), confidence) for name in names}
        made += [{**head, "quantity": n, "estimate": e.mean, "low": e.low, "high": e.high} for n, e in found.items()]
        shown.append(head | {names[n]: "–" if np.isnan(e.mean) else f"{e.mean:,.1f}" for n, e in found.items()})
    return Table(pd.DataFrame(made), pd.DataFrame(shown), TIMING_CAPTION, "tab:timing")
