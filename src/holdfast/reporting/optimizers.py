"""Models aligned by different optimizers beside each other, and the rise that their curvature predicts."""

from __future__ import annotations

from typing import Any

import pandas as pd

from holdfast.reporting.cost import overheads
from holdfast.reporting.estimates import CLEAN, estimate, judged_points, sampled
from holdfast.reporting.render import Table, number, percent
from holdfast.reporting.setting import Setting
from holdfast.settings.options import Config
from holdfast.statistics.intervals import student
from holdfast.statistics.rates import Metrics

CAPTION = (
    "Base optimizers. Above: models aligned by each recipe, and the last step's refinement of all layers where it was "
    "run: refusals, over-refusal and utility of the clean model, the ASR where each family is judged, and what "
    "alignment and refinement spent. Below: the rise of the loss under noise σ on all "
    "decoder layers at once, as predicted from curvature, the sum over layers of S at the least radius times "
    "(σ / least radius)², and as measured; mean over seeds with the {confidence:.0%} t interval. "
)


def optimizers(metrics: Metrics, setting: Setting, frames: dict[str, pd.DataFrame], cfg: Config) -> Table:
    """`frames` holds sensitivity and costs."""
    rows, shown = [], []
    for model, method in _compared(metrics, setting, cfg):
        head = {"block": "optimizers", "model": model, "method": method}
        found = _measured(metrics, setting, model, method)
        spent = _spent(frames["costs"], cfg, model, method)
        rows += [{**head, **number} for number, _ in found.values()]
        rows += [{**head, "quantity": name, "estimate": value} for name, value in spent.items()]
        cells = {name: cell for name, (_, cell) in found.items()} | {n: f"{v:,.0f}" for n, v in spent.items()}
        shown.append({"model": model, "method": method} | cells)
    rises, below = _rises(frames["sensitivity"], cfg, setting.confidence)
    caption = CAPTION.format(confidence=setting.confidence) + setting.caption()
    frame = pd.DataFrame(rows + rises)
    return Table(frame, pd.DataFrame(shown), caption, "tab:optimizers", (pd.DataFrame(below),))


def _compared(metrics: Metrics, setting: Setting, cfg: Config) -> list[tuple[str, str]]:
    """The recipes as they are, and refined by zeroth order on all layers."""
    measured = dict.fromkeys((point.model, point.method) for point in metrics)
    wanted = [(recipe, m) for recipe in cfg.claims.optimizers for m in (setting.reference, cfg.claims.methods.all)]
    return [(label, m) for recipe, m in wanted for label, own in measured if own == m and _recipe(label) == recipe]


def _recipe(label: str) -> str:
    return label.rpartition("/")[2]


def _measured(metrics: Metrics, setting: Setting, model: str, method: str) -> dict[str, tuple[dict[str, Any], str]]:
    """Column -> its numbers and its cell."""
    at = {"clean refusals (%)": (CLEAN, "refused"), "over-refusal (%)": (CLEAN, "over_refusal")}
    at |= {"utility (%)": (CLEAN, "utility")}
    at |= {family: (one.at, "asr") for family, one in judged_points(metrics, setting, model).items() if one}
    found = {}
    for name, (point, metric) in at.items():
        e = estimate(sampled(metrics, model, method, point, metric), metric, setting)
        level = {} if point == CLEAN else {"level": point[2]}
        found[name] = ({"quantity": name, "estimate": e.mean, "low": e.low, "high": e.high, **level}, percent(e))
    return found


def _spent(costs: pd.DataFrame, cfg: Config, model: str, method: str) -> dict[str, float]:
    """Means over seeds of the steps and sequences of alignment, and of refinement after it."""
    align = costs[(costs["stage"] == "align") & (costs["model"] == model)]
    refined = overheads(costs, cfg)
    mine = refined[(refined["model"] == model) & (refined["method"] == method)]
    return {
        name: float(align[name].mean() + (mine[name].mean() if len(mine) else 0.0)) for name in ("steps", "sequences")
    }


def _rises(rises: pd.DataFrame, cfg: Config, confidence: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predicted and measured rise of each recipe at each radius, as numbers and as cells."""
    weights = rises[(rises["kind"] == "weights") & rises["model"].map(_recipe).isin(cfg.claims.optimizers)]
    mean = weights.groupby(["model", "sigma", "group", "seed"], observed=True)["rise"].agg(
        lambda found: float(found.astype(float).mean())
    )
    numbers, cells = [], []
    for model, found in mean.groupby("model", sort=False):
        wide = found.droplevel("model").unstack("seed")  # (radius, group) by seeds
        radii = wide.index.get_level_values("sigma").unique().sort_values()
        layers = wide.loc[radii[0]].filter(regex=r"^layer\.", axis=0).sum(skipna=False)
        for sigma in radii:
            if (sigma, "all") not in wide.index:
                continue
            both = {"predicted": layers * (sigma / radii[0]) ** 2, "measured": wide.loc[(sigma, "all")]}
            both["measured / predicted"] = both["measured"] / both["predicted"]
            estimates = {name: student(values.to_numpy(), confidence) for name, values in both.items()}
            head = {"block": "rise", "model": model, "sigma": sigma}
            numbers += [
                {**head, "quantity": n, "estimate": e.mean, "low": e.low, "high": e.high} for n, e in estimates.items()
            ]
            cells.append({"model": model, "σ": f"{sigma:g}"} | {n: number(e, ".3f") for n, e in estimates.items()})
    return numbers, cells
