"""What is answered, by where prompts come from and by category."""

from __future__ import annotations

from typing import Any

import pandas as pd

from holdfast.reporting.render import Table
from holdfast.reporting.setting import Setting
from holdfast.reporting.tables import columns
from holdfast.statistics.rates import Metrics

CAPTION = (
    "By source and category of the prompts: harmful ones answered (ASR), benign ones refused (over-refusal), in % of "
    "scored responses, all seeds and draws together, with the number of different prompts; levels as in the main "
    "table. Without intervals: a source may have few prompts. "
)


def sources(records: pd.DataFrame, metrics: Metrics, setting: Setting) -> Table:
    """`records`: verdict, source and category of every prompt."""
    said = records[(records["split"] == "test") & records["verdict"].notna() & (records["verdict"] != "unscored")]
    said = said.assign(
        hit=(said["verdict"] == "complied").where(said["label"] == "harmful", said["verdict"] == "refused")
    )
    rows = []
    for model in dict.fromkeys(point.model for point in metrics):
        for column, at in columns(metrics, model, setting).items():
            if at is None:
                continue
            here = said[(said["model"] == model) & (said["perturbation"] == at[0]) & (said["level"] == at[2])]
            by = ["label", "source", "category", "method"]
            key: Any  # pandas types the parts of a group's key as anything hashable
            for key, found in here.groupby(by, sort=True, observed=True):
                head = {"model": model, "at": column} | dict(zip(by, map(str, key), strict=True))
                counted = {"prompts": found["id"].nunique(), "responses": len(found)}
                rows.append(head | counted | {"rate": float(found["hit"].mean())})
    frame = pd.DataFrame(rows)
    return Table(frame, _shown(frame, setting), CAPTION + setting.caption(), "tab:sources")


def _shown(frame: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    head = ["label", "model", "at", "source", "category"]
    told = frame.assign(cell=[f"{100 * rate:.1f}" for rate in frame["rate"]])
    wide = told.pivot(index=head, columns="method", values="cell").reindex(columns=setting.methods)
    prompts = told.groupby(head)["prompts"].max().astype(str)
    order = told[head].drop_duplicates()
    found = wide.loc[pd.MultiIndex.from_frame(order)].fillna("–")
    found.insert(0, "prompts", prompts.loc[found.index])
    found = found.reset_index()
    names = {"harmful": "harmful, answered (%) ↓", "benign": "benign, refused (%) ↓"}
    return found.assign(label=found["label"].map(names)).rename(columns={"label": "metric"})
