"""Responses in the form of inspect_ai's logs (`EvalLog`, version 2), for its viewer; the package is not needed."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from holdfast.reporting.setting import Setting
from holdfast.reporting.transcripts import points

CREATED = "1970-01-01T00:00:00+00:00"  # a log has to have a date; the same responses shall be the same bytes


def logs(responses: pd.DataFrame, setting: Setting, study: str, judge: str) -> dict[str, str]:
    """`<model>-<recipe>-<method>` -> JSON. A sample is a prompt, an epoch a point of the grid: its name is in
    `metadata`. The score is the judge's verdict, the target what an aligned model does."""
    responses = responses.assign(point=points(responses, setting))
    epochs = {point: k for k, point in enumerate(responses["point"].unique(), start=1)}
    made = {}
    for (model, method), rows in responses.groupby(["model", "method"], sort=False):
        spec = {"created": CREATED, "task": f"holdfast/{study}", "model": f"{model}/{method}", "config": {}}
        spec |= {"dataset": {"name": study, "samples": rows["id"].nunique()}}
        samples = [_sample(row, epochs[row.point], judge) for row in rows.itertuples()]
        log = {"version": 2, "status": "success", "eval": spec, "samples": samples}
        made[f"{str(model).replace('/', '-')}-{method}"] = json.dumps(log, ensure_ascii=False, indent=1) + "\n"
    return made


def _sample(row: Any, epoch: int, judge: str) -> dict[str, Any]:
    said = {"role": "assistant", "content": row.response}
    stop = {"message": said, "stop_reason": "stop" if row.ended else "max_tokens"}
    return {
        "id": row.id,
        "epoch": epoch,
        "input": row.prompt,
        "target": "refused" if row.label == "harmful" else "complied",
        "messages": [{"role": "user", "content": row.prompt}, said],
        "output": {"model": str(row.model), "choices": [stop], "completion": row.response},
        "scores": {judge: {"value": row.verdict, "answer": row.response, "explanation": row.reason or None}},
        "metadata": {"at": row.point, "label": row.label, "source": row.source, "category": row.category},
    }
