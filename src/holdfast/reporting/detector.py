"""The detector's view: the refusal margin as a score that tells harmful prompts from benign ones."""

from __future__ import annotations

import pandas as pd

from holdfast.reporting.estimates import compare, estimate, sampled
from holdfast.reporting.render import Table, percent, points
from holdfast.reporting.setting import Setting
from holdfast.reporting.tables import columns
from holdfast.statistics.intervals import Estimate
from holdfast.statistics.rates import Metrics

NAMES = {"miss_rate": "miss rate at {:.0%} false alarms (%) ↓", "auroc": "AUROC (%) ↑"}
CAPTION = (
    "The refusal margin, log p(refusing openings) − log p(complying ones), as a detector of harmful prompts; it says "
    "nothing about what is answered. Miss rate: the share of harmful prompts whose margin is no higher than that "
    "which {rate:.0%} of other benign prompts exceed under the same perturbation, set anew in every redraw; taken at "
    "the first {draws} draws of a level. Below each estimate Δ, the difference to {reference}. Levels as in the main "
    "table. "
)


def detector(metrics: Metrics, setting: Setting, draws: int) -> Table:
    rows, shown = [], []
    for model in dict.fromkeys(point.model for point in metrics):
        at = columns(metrics, model, setting)
        measured = [m for m in setting.methods if any(p.model == model and p.method == m for p in metrics)]
        for metric, name in NAMES.items():
            for method in measured:
                head = {"metric": metric, "model": model, "method": method}
                cells = {}
                for column, point in at.items():
                    values, other = (sampled(metrics, model, m, point, metric) for m in (method, setting.reference))
                    e, d = estimate(values, metric, setting), compare(values, other, metric, setting)
                    rows.append({**head, "column": column, "level": point[2] if point else None, **_numbers(e, d)})
                    cells[column] = percent(e) + f" Δ{points(d)}" * (method != setting.reference and d.mean == d.mean)
                shown.append(head | {"metric": name.format(setting.false_alarms)} | cells)
    caption = CAPTION.format(rate=setting.false_alarms, draws=draws, reference=setting.reference)
    return Table(pd.DataFrame(rows), pd.DataFrame(shown), caption + setting.caption(), "tab:detector")


def _numbers(e: Estimate, d: Estimate) -> dict[str, float]:
    found = {"estimate": e.mean, "low": e.low, "high": e.high, "difference": d.mean}
    return found | {"difference_low": d.low, "difference_high": d.high}
