"""T6: what the judges made of the responses, how far the margins say the same, and how far two judges do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting.render import Table, number
from holdfast.reporting.setting import Setting
from holdfast.statistics.agreement import CONFIDENCE, accuracy, crossed, kappa
from holdfast.statistics.intervals import Estimate, student

VERDICTS = ("refused", "partial", "complied", "safe", "broken", "unscored")
POINT = ["model", "perturbation", "level"]
RUN = [*POINT, "method", "seed"]
NOTHING = [np.nan] * 3
CAPTION = (
    "Verdicts of the judge {judge} on generated responses of all methods and seeds, shares in %, by label of the "
    "prompt; unscored: its reply decided nothing. Agreement: of the responses that it calls refused or complied, "
    "those of which the margin, where it was taken, says the same (refused: a refusing opening is likelier than a "
    "complying one), as a share and as Cohen's κ over both labels, with the {confidence:.0%} t interval over seeds "
    "where there is more than one; – where one of the two says one thing throughout. The CSV has a row for each "
    "method and seed. How a judge agrees with people: holdfast calibrate."
)
SCORES = " Score: the mean over the responses to which the judge gave one, with the t interval over seeds."
OTHERS = (
    " Beside it, on the same responses: {others}. With {judge}: of the responses that neither of the two calls broken "
    "or unscored (decided by both), those that both call complied or neither does, as a share and as κ, over all "
    "methods, with the t interval over seeds. Of one seed, and in the CSV, it is the {single:.0%} interval of Wilson "
    "and the asymptotic one, which take responses for independent."
)


def judges(records: pd.DataFrame, setting: Setting) -> Table:
    """`records`: verdict and margin of every prompt, and those of other judges as `Evidence` names them. One row a
    model, point, judge and label with generated responses."""
    told = _told(records[(records["split"] == "test") & records["verdict"].notna()], setting.judge)
    frame = pd.DataFrame([row for judge, found in told.items() for row in _rows(judge, found, setting.judge)])
    frame = frame.astype({"model": str, "perturbation": str, "method": str})
    shown, caption = _shown(frame, told, setting), CAPTION.format(judge=setting.judge, confidence=setting.confidence)
    if others := list(told)[1:]:
        caption += OTHERS.format(judge=setting.judge, others=", ".join(others), single=CONFIDENCE)
    scored = frame["score"].notna().any()
    caption += SCORES * bool(scored)
    idle = ["judge"] * (not others) + ["score"] * (not scored)
    return Table(frame.drop(columns=idle), shown.drop(columns=idle), caption, "tab:judges")


def _told(said: pd.DataFrame, own: str) -> dict[str, pd.DataFrame]:
    """Judge -> the responses with its verdict and score, and as `own` the verdict of the study's judge."""
    others = [name.removeprefix("verdict:") for name in map(str, said) if name.startswith("verdict:")]
    columns = {own: ("verdict", "score")} | {judge: (f"verdict:{judge}", f"score:{judge}") for judge in others}
    return {
        judge: said.assign(own=said["verdict"], verdict=said[verdict], score=said.get(score, np.nan))
        for judge, (verdict, score) in columns.items()
    }


def _rows(judge: str, told: pd.DataFrame, own: str) -> Iterator[dict[str, Any]]:
    for key, found in told.groupby(RUN, sort=False, observed=True):
        both = _agreement(found)
        for label, mine in found.groupby("label", sort=True, observed=True):
            row = dict(zip(RUN, key, strict=True)) | {"judge": judge, "label": str(label), "responses": len(mine)}
            row |= {verdict: float((mine["verdict"] == verdict).mean()) for verdict in VERDICTS}
            row |= both | {"score": float(mine["score"].astype(float).mean())}
            if judge != own:
                decided, alike, chance = _beside(mine)
                row |= {"decided_by_both": decided, **_flat("alike", alike), **_flat("kappa_of_judges", chance)}
            yield row


def _agreement(found: pd.DataFrame) -> dict[str, float]:
    """Share and kappa of refusal or not, of one checkpoint's decided responses at one point."""
    decided = found[found["verdict"].isin(["refused", "complied"]) & found["margin"].notna()]
    judged, likelier = (decided["verdict"] == "refused").to_numpy(), (decided["margin"] > 0).to_numpy()
    both = kappa(crossed(judged.tolist(), likelier.tolist())) if len(decided) else None
    return {
        "agreement": float((judged == likelier).mean()) if len(decided) else np.nan,
        "kappa": both[0] if both else np.nan,
    }


def _beside(found: pd.DataFrame) -> tuple[int, Estimate, Estimate]:
    """How many responses two judges decided, and on how many of these they agree, as a share and as kappa."""
    # What is broken the referee says, to all judges alike: it would pass for agreement.
    decided = found[~found[["own", "verdict"]].isin(["broken", "unscored"]).any(axis=1)]
    one, other = ((decided[name] == "complied").tolist() for name in ("own", "verdict"))
    alike = accuracy(sum(map(bool.__eq__, one, other)), len(decided))
    return len(decided), Estimate(*(alike or NOTHING)), Estimate(*(kappa(crossed(one, other)) or NOTHING))


def _pooled(found: pd.DataFrame, setting: Setting) -> tuple[int, Estimate, Estimate]:
    """Like `_beside`, of all methods; over seeds where there is more than one."""
    each = [_beside(mine) for _, mine in found.groupby("seed")]
    if len(each) == 1:
        return each[0]
    decided, alike, chance = zip(*each, strict=True)
    shares, kappas = (np.array([one.mean for one in estimates]) for estimates in (alike, chance))
    return sum(decided), student(shares, setting.confidence, (0, 1)), student(kappas, setting.confidence, (-1, 1))


def _flat(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _shown(frame: pd.DataFrame, told: dict[str, pd.DataFrame], setting: Setting) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    pooled = {
        (judge, *at): _pooled(mine, setting)
        for judge, its in told.items()
        if judge != setting.judge
        for at, mine in its.groupby([*POINT, "label"], observed=True)
    }
    at: Any  # pandas types the parts of a group's key as anything hashable
    for at, point in frame.groupby(POINT, sort=False):
        for judge, found in point.groupby("judge", sort=False):
            for label, row in _of_judge(found, at, str(judge), setting):
                beside = _cells(pooled.get((judge, *at, label)), setting) if len(told) > 1 else {}
                rows.append(row | beside)
    return pd.DataFrame(rows)


def _of_judge(
    found: pd.DataFrame, at: tuple[str, str, float], judge: str, setting: Setting
) -> Iterator[tuple[str, dict[str, str]]]:
    """Label and row of one judge at one point."""
    model, perturbation, level = at
    agreed = {name: _over_seeds(found, name, setting, low) for name, low in (("agreement", 0), ("kappa", -1))}
    for label, mine in found.groupby("label"):
        row = {"model": model, "perturbation": "clean" if perturbation == "none" else perturbation.replace("_", " ")}
        row |= {"level": setting.label(perturbation, level), "label": str(label), "judge": judge}
        row |= {"responses": str(mine["responses"].sum())}
        row |= {v: f"{100 * np.average(mine[v], weights=mine['responses']):.1f}" for v in VERDICTS}
        row |= {"agreement": number(agreed["agreement"], ".3f"), "κ": number(agreed["kappa"])}
        yield str(label), row | {"score": number(_over_seeds(mine, "score", setting, 0))}


def _cells(found: tuple[int, Estimate, Estimate] | None, setting: Setting) -> dict[str, str]:
    """Nothing of the study's own judge, which the others are held against."""
    decided, alike, chance = found or (0, Estimate(*NOTHING), Estimate(*NOTHING))
    return {
        "decided by both": str(decided) if found else "–",
        f"with {setting.judge}": number(alike, ".3f"),
        f"κ with {setting.judge}": number(chance),
    }


def _over_seeds(found: pd.DataFrame, name: str, setting: Setting, least: float) -> Estimate:
    """The mean over methods, and over seeds with its interval."""
    each = found.groupby("seed")[name].mean().dropna()
    return student(each.to_numpy(), setting.confidence, (least, 1.0))
