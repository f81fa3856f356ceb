"""T7: each claim, and our own goal, against the study's records by the rules of the claims."""

from __future__ import annotations

from math import isnan, nan
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting import verdicts
from holdfast.reporting.comparisons import CLAIMS, Comparisons, Row
from holdfast.reporting.estimates import GUARDS, limit
from holdfast.reporting.render import Table, number, points
from holdfast.reporting.setting import Setting
from holdfast.reporting.tables import WIDE
from holdfast.settings.options import Config
from holdfast.statistics.intervals import Estimate, holm
from holdfast.statistics.rates import Metrics

STATEMENTS = {
    "C1": "alignment is fragile",
    "C2": "zeroth-order refinement improves robustness",
    "C3": "it preserves the clean model",
    "C4": "sensitivity is stable and selects",
    "C5": "selected layers are as good as all",
    "O1": "forward-only matches first order",
    "K1": "the sign-shuffled walk does nothing",
}
HOLM = ("C1", "C2", "C3", "C4", "C5")
SHOWN = {"effect": "effect", **{cost: f"worse {cost.replace('_', ' ')}" for cost in GUARDS}}
WHOLE = "as a whole"


def claims_table(metrics: Metrics, setting: Setting, frames: dict[str, pd.DataFrame], cfg: Config) -> Table:
    """T7; `frames` holds sensitivity, online and costs."""
    rows = Comparisons(metrics, setting, frames, cfg).rows()
    wholes = _wholes(rows, cfg)
    made = []
    for claim in CLAIMS:
        for row in [one for one in rows if one.claim == claim]:
            made.append(_numbers(row, row.test.p, nan))
        made += [whole for whole in wholes if whole["claim"] == claim]
    frame = pd.DataFrame(made)
    best = {row.comparison.partition(" − ")[2].partition(" at ")[0] for row in rows if row.claim == "O1"}
    best -= {cfg.claims.methods.extrapolate, cfg.claims.methods.shuffled}
    return Table(frame, _shown(frame), _caption(setting, cfg, sorted(best)), "tab:claims")


def _numbers(row: Row, p: float, p_holm: float) -> dict[str, Any]:
    """A row of the CSV, shares in points."""
    model, _, recipe = row.model.rpartition("/")
    head: dict[str, Any] = {"claim": row.claim, "statement": STATEMENTS[row.claim], "model": model, "recipe": recipe}
    head |= {"family": row.family, "comparison": row.comparison, "unit": row.unit}
    scale = 100 if row.unit == "points" else 1
    for name, d in {"effect": row.effect, **row.guards}.items():
        head |= {name: scale * d.mean, f"{name}_low": scale * d.low, f"{name}_high": scale * d.high}
    head |= {"effect_own_low": scale * row.effect.own_low, "effect_own_high": scale * row.effect.own_high}
    return head | {"p": p, "p_holm": p_holm, "verdict": row.test.verdict}


def _wholes(rows: list[Row], cfg: Config) -> list[dict[str, Any]]:
    """Each claim for each judged model: its parts together, their largest p, and that by Holm over all of them."""
    parts: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.whole and row.model.rpartition("/")[2] in cfg.claims.judged:
            parts.setdefault((row.claim, row.model), []).append(row)
    largest = {
        key: max((one.test.p for one in found if not isnan(one.test.p)), default=nan) for key, found in parts.items()
    }
    corrected = [key for key in parts if key[0] in HOLM]
    p_holm = dict(zip(corrected, holm([largest[key] for key in corrected]), strict=True))
    made = []
    for (claim, model), found in parts.items():
        p = p_holm.get((claim, model), largest[claim, model])
        decided = isnan(p) or p < 1 - cfg.claims.confidence
        verdict = verdicts.together((one.test.verdict for one in found), decided)
        whole = Row(claim, model, WHOLE, "", Estimate(nan, nan, nan), verdicts.Test(largest[claim, model], verdict))
        made.append(_numbers(whole, largest[claim, model], p_holm.get((claim, model), nan)))
    return made


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for row in _records(frame):
        shown = {name: row[name] for name in ("claim", "model", "recipe", "family", "comparison")}
        shown |= {title: _cell(row, name) for name, title in SHOWN.items()}
        shown |= {name: "–" if np.isnan(row[name]) else f"{row[name]:.2g}" for name in ("p", "p_holm")}
        rows.append(shown | {"verdict": row["verdict"]})
    return pd.DataFrame(rows)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _cell(row: dict[str, Any], name: str) -> str:
    scale = 100 if row["unit"] == "points" else 1
    e = Estimate(*(row[key] / scale for key in (name, f"{name}_low", f"{name}_high")))
    if row["unit"] == "points" or np.isnan(e.mean):
        return points(e)
    return number(e, ".1f" if row["unit"] == "%" else ".2f") + (" %" if row["unit"] == "%" else "")


def _caption(setting: Setting, cfg: Config, best: list[str]) -> str:
    c, m = cfg.claims, cfg.claims.methods
    margin = f"{100 * c.margin:g} points"
    costs = ", ".join(f"{name.replace('_', ' ')} {100 * limit(setting, name):g}" for name in GUARDS)
    return (
        f"Claims: {'; '.join(f'{claim}, {words}' for claim, words in STATEMENTS.items())}. Effect: difference of the "
        f"ASR (in C3 of what the family names) in points with its {c.confidence:.0%} interval; beside it how much "
        f"worse each guard is at the same point: what a lower ASR may cost is {costs} points. Levels are those of "
        f"the main table. Recipes judged: {', '.join(c.judged)}; other lengths of alignment are shown and not "
        "counted. Every p is two-sided, at the margin of its rule. A claim as a whole is an intersection-union test "
        "over its families: all have to hold, and its p is the largest; p_holm is Holm's over C1–C5 of all judged "
        f"recipes and models, and a claim is supported only where it is below {1 - c.confidence:.2g}. C1: interval "
        f"above +{margin} supports, below "
        f"refutes; a family where {setting.reference} answers fewer than {setting.headline_asr:.0%} of the tuning "
        f"prompts at every level is not measurable. C2, C4 (against {m.random}) and O1 against controls: interval "
        f"below 0 and every guard within its cost supports; above −{margin}, or a guard beyond its cost, refutes. "
        f"C2, C4 and C5 are asked only where C1 is supported. C3: clean ASR below +{margin}, guards below their "
        f"cost; asked only where refinement moved the weights by at least {c.moved:.0%} of what alignment did. C5 "
        f"and O1 against first order: interval below +{margin} supports, above refutes. K1: within ± {margin}. C4, "
        f"mean rank correlation of seeds (jackknife): interval above {c.stable:g} supports, below refutes. Overhead: "
        f"at most {c.overhead:.1%} of alignment. O1's first-order method ({', '.join(best) or 'none was run'}) is "
        "the one with the lowest mean ASR "
        "over families, chosen after the fact, which counts against us. " + setting.caption()
    )


def terminal_claims(frame: pd.DataFrame, setting: Setting) -> str:
    """A sentence for each of C1–C5 and each judged model; what was not run is left out."""
    rows, lines = _records(frame), []
    for whole in (row for row in rows if row["family"] == WHOLE and row["claim"] in HOLM):
        mine = [
            row for row in rows if all(row[k] == whole[k] for k in ("claim", "model", "recipe")) and row is not whole
        ]
        told = [f"{_part(row)} {_cell(row, 'effect')}" for row in mine if row["verdict"] not in verdicts.SILENT]
        why = "" if told or whole["verdict"] == verdicts.NOT_RUN else f" ({_reason(mine)})"
        tail = f": {'; '.join(told)}" if told else why
        head = f"{whole['claim']} {whole['statement']}, {whole['model']}/{whole['recipe']}: {whole['verdict']}"
        lines += wrap(head + tail + ".", WIDE, subsequent_indent="   ")
    return "\n".join([*lines, "effects in points of the ASR, or in what they name; the rest is in claims.md"]) + "\n"


def _part(row: dict[str, Any]) -> str:
    if row["claim"] in ("C1", "C3") and row["family"] != "all":
        return str(row["family"])
    if row["family"] == "all":
        return str(row["comparison"]).partition(", by")[0]
    return f"{row['family']} ({row['comparison'].partition(' at ')[0]})"


def _reason(rows: list[dict[str, Any]]) -> str:
    return "; ".join(dict.fromkeys(row["verdict"] for row in rows))
