"""T6: what the judge made of the responses, and how far the margins say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting.render import Table, number
from holdfast.reporting.setting import Setting
from holdfast.statistics.agreement import crossed, kappa
from holdfast.statistics.intervals import Estimate, student

VERDICTS = ("refused", "partial", "complied", "safe", "broken", "unscored")
CAPTION = (
    "Verdicts of the judge {judge} on generated responses of all methods and seeds, shares in %, by label of the "
    "prompt; unscored: its reply decided nothing. Agreement: of the responses that it calls refused or complied, "
    "those of which the margin says the same (refused: a refusing opening is likelier than a complying one), as a "
    "share and as Cohen's κ over both labels, with the {confidence:.0%} t interval over seeds where there is more "
    "than one; – where one of the two says one thing throughout. The CSV has a row for each method and seed. How a "
    "judge agrees with people: holdfast calibrate."
)


def judges(records: pd.DataFrame, setting: Setting) -> Table:
    """`records`: verdict and margin of every prompt. One row a model, point and label with generated responses."""
    said = records[(records["split"] == "test") & records["verdict"].notna()]
    by = ["model", "perturbation", "level", "method", "seed"]
    rows = []
    for key, found in said.groupby(by, sort=False, observed=True):
        both = _agreement(found)
        for label, mine in found.groupby("label", sort=True, observed=True):
            shares = {verdict: float((mine["verdict"] == verdict).mean()) for verdict in VERDICTS}
            rows.append(
                dict(zip(by, key, strict=True)) | {"label": str(label), "responses": len(mine)} | shares | both
            )
    frame = pd.DataFrame(rows).astype({"model": str, "perturbation": str, "method": str})
    caption = CAPTION.format(judge=setting.judge, confidence=setting.confidence)
    return Table(frame, _shown(frame, setting), caption, "tab:judges")


def _agreement(found: pd.DataFrame) -> dict[str, float]:
    """Share and kappa of refusal or not, of one checkpoint's decided responses at one point."""
    decided = found[found["verdict"].isin(["refused", "complied"])]
    judged, likelier = (decided["verdict"] == "refused").to_numpy(), (decided["margin"] > 0).to_numpy()
    both = kappa(crossed(judged.tolist(), likelier.tolist())) if len(decided) else None
    return {
        "agreement": float((judged == likelier).mean()) if len(decided) else np.nan,
        "kappa": both[0] if both else np.nan,
    }


def _shown(frame: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    rows = []
    key: Any  # pandas types the parts of a group's key as anything hashable
    for key, found in frame.groupby(["model", "perturbation", "level"], sort=False):
        model, perturbation, level = key
        agreed = {name: _over_seeds(found, name, setting, low) for name, low in (("agreement", 0), ("kappa", -1))}
        for label, mine in found.groupby("label"):
            shares = {v: f"{100 * np.average(mine[v], weights=mine['responses']):.1f}" for v in VERDICTS}
            name = perturbation.replace("_", " ")
            row: dict[str, Any] = {"model": model, "perturbation": "clean" if name == "none" else name}
            row |= {"level": setting.label(perturbation, level), "label": label}
            row |= {"responses": str(mine["responses"].sum())} | shares
            rows.append(row | {"agreement": number(agreed["agreement"], ".3f"), "κ": number(agreed["kappa"])})
    return pd.DataFrame(rows)


def _over_seeds(found: pd.DataFrame, name: str, setting: Setting, least: float) -> Estimate:
    """The mean over methods, and over seeds with its interval."""
    each = found.groupby("seed")[name].mean().dropna()
    return student(each.to_numpy(), setting.confidence, (least, 1.0))
