"""General utility by lm-eval's tasks, of the unperturbed models and at chosen points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting.render import Table, number
from holdfast.reporting.setting import Setting
from holdfast.statistics.intervals import student

CAPTION = (
    "General utility: tasks of lm-eval on the clean models, and at the first draw of the points that were asked for, "
    "in each task's own unit, and the difference to {reference}, paired by seed; means over {seeds} with the "
    "{confidence:.0%} t interval where there is more than one. The interval is for new seeds: documents are not "
    "redrawn."
)


def tasks(found: pd.DataFrame, setting: Setting) -> Table:
    """`found`: model, method, seed, task (`<task>/<metric>`, at a point `<task>/<metric>@<name>/<level>`) and value.
    One row a task, point, model and method."""
    wide = found.pivot(index=["task", "model", "method"], columns="seed", values="value").sort_index()
    rows: list[dict[str, Any]] = []
    for key, model in dict.fromkeys((key, model) for key, model, _ in wide.index):
        mine, (task, at) = wide.loc[key, model], _parted(key, setting)
        for method in [method for method in setting.methods if method in mine.index]:
            values = mine.loc[method].to_numpy(dtype=float)
            paired = values - mine.loc[setting.reference].to_numpy(dtype=float)
            e, d = (student(v, setting.confidence) for v in (values, paired))
            row = {"task": task, "at": at, "model": model, "method": method, "seeds": int(np.isfinite(values).sum())}
            row |= {"estimate": e.mean, "low": e.low, "high": e.high}
            rows.append(row | {"difference": d.mean, "difference_low": d.low, "difference_high": d.high})
            rows[-1]["shown"] = number(e, ".3f"), number(d, "+.3f") if method != setting.reference else "–"
    frame = pd.DataFrame(rows)
    cells = pd.DataFrame(frame.pop("shown").tolist(), columns=["score", f"Δ {setting.reference}"])
    seeds = f"{setting.seeds} seed{'s' * (setting.seeds > 1)}"
    caption = CAPTION.format(reference=setting.reference, seeds=seeds, confidence=setting.confidence)
    return Table(frame, frame[["task", "at", "model", "method"]].join(cells), caption, "tab:tasks")


def _parted(key: str, setting: Setting) -> tuple[str, str]:
    """The task with its metric, whose name may hold an @ of its own, and how the point reads."""
    task, _, at = key.rpartition("@")
    name, _, level = at.partition("/")
    if name not in setting.perturbations:
        return key, "clean"
    return task, setting.named(name, setting.perturbations[name].family, float(level))
