"""T7: each claim, and our own goal, against the study's records by the rules of the claims."""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from holdfast.reporting import verdicts
from holdfast.reporting.comparisons import Comparisons
from holdfast.reporting.render import Table, number, points
from holdfast.reporting.setting import Setting
from holdfast.settings.options import Config
from holdfast.statistics.intervals import Estimate, holm
from holdfast.statistics.rates import Metrics

STATEMENTS = {
    "C1": "alignment is fragile",
    "C2": "zeroth-order refinement improves robustness",
    "C3": "it preserves the clean model",
    "C4": "sensitivity is stable and selects",
    "C5": "selected layers are as good as all",
    "O1": "forward-only matches first-order",
    "K1": "sign-shuffled walk does nothing",
}
SHOWN = {
    "effect": "effect",
    "asr": "Δ raw ASR",
    "asr_margin": "Δ ASR by margins",
    "auroc": "Δ AUROC",
    "utility": "Δ utility",
}


def claims_table(metrics: Metrics, setting: Setting, frames: dict[str, pd.DataFrame], cfg: Config) -> Table:
    """T7; `frames` holds sensitivity, online and costs."""
    rows = Comparisons(metrics, setting, frames, cfg).rows()
    adjusted = holm([row.p if row.judged else nan for row in rows])
    made = []
    for row, p_holm in zip(rows, adjusted, strict=True):
        decisive = p_holm if row.judged else row.p
        verdict = row.verdict
        if row.rule:
            verdict = row.rule(row.effect, decisive < 1 - cfg.claims.confidence, cfg.claims.margin)
        model, _, recipe = row.model.rpartition("/")
        head: dict[str, Any] = {
            "claim": row.claim,
            "statement": STATEMENTS[row.claim],
            "model": model,
            "recipe": recipe,
        }
        head |= {"family": row.family, "comparison": row.comparison, "unit": row.unit}
        scale = 100 if row.unit == "points" else 1
        for name, d in {"effect": row.effect, **row.beside}.items():
            head |= {name: scale * d.mean, f"{name}_low": scale * d.low, f"{name}_high": scale * d.high}
        made.append(head | {"p": row.p, "p_holm": p_holm, "judged": row.judged, "verdict": verdict})
    frame = pd.DataFrame(made)
    best = {row.comparison.rpartition(" − ")[2] for row in rows if row.rule is verdicts.as_good and row.claim == "O1"}
    return Table(frame, _shown(frame), _caption(setting, cfg, sorted(best)), "tab:claims")


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
    e = Estimate(
        *(row[key] / (100 if row["unit"] == "points" else 1) for key in (name, f"{name}_low", f"{name}_high"))
    )
    if row["unit"] == "points" or np.isnan(e.mean):
        return points(e)
    return number(e, ".1f" if row["unit"] == "%" else ".2f") + (" %" if row["unit"] == "%" else "")


def _caption(setting: Setting, cfg: Config, best: list[str]) -> str:
    c = cfg.claims
    at = "; ".join(f"{family}: {h.perturbation} {h.level:g}" for family, h in c.families.items())
    margin = f"{100 * c.margin:g} points"
    return (
        f"Claims: {'; '.join(f'{claim}, {words}' for claim, words in STATEMENTS.items())}. Effect: difference of "
        f"the primary metric ({c.primary}; in C3 of what the family names) in points with its {c.confidence:.0%} "
        "interval. Beside it, at the same point, raw ASR, ASR by margins alone, AUROC (in points of a hundred) and "
        "utility: broken responses are no success, so where margins do not share an effect, or utility pays for "
        f"it, answers broke and did not hold. Headline levels: {at}. Recipes judged: {', '.join(c.judged)}; other "
        "lengths of alignment are shown and not counted. "
        "p_holm: Holm's over all rows of C1–C5 at the judged recipes that have a p, one family (O1, K1 and other "
        "lengths: p alone decides); a claim is supported only where it is "
        f"below {1 - c.confidence:.2g} besides the rule. C1: interval above +{margin} supports, below refutes. C2, C4 "
        f"(against {c.methods.random}) and O1 against controls: interval below 0 supports, above −{margin} refutes. "
        f"C3 and K1: interval within ± {margin} supports, beyond it on the bad side refutes; p of two one-sided tests"
        f"{' (utility: nats per token, a hundredth a point)' if setting.utility == 'perplexity' else ''}. C5 and O1 "
        f"against first-order: interval below +{margin} supports, above refutes; p of non-inferiority. C4, mean rank "
        f"correlation of seeds (jackknife): interval above {c.stable:g} supports, below refutes. Overhead: at most "
        f"{c.overhead:.1%} of alignment. Not measurable: {setting.reference} stays below {setting.headline_asr:.0%} "
        f"at the headline level on the tuning split. O1's first-order method ({', '.join(best) or 'none was run'}) is "
        "the one with the lowest mean of the primary metric over families, chosen after the fact, which "
        "counts against us. " + setting.caption()
    )


def terminal_claims(frame: pd.DataFrame, setting: Setting) -> str:
    """T7 narrow enough for a terminal, without what was not run."""
    rows = [
        [
            *(row["claim"], row["family"], f"{row['model']}/{row['recipe']}", row["comparison"]),
            *(_cell(row, "effect"), row["verdict"]),
        ]
        for row in _records(frame[frame["verdict"] != verdicts.NOT_RUN])
    ]
    names = ["claim", "family", "recipe", "comparison", "effect", "verdict"]
    return tabulate(rows, headers=names, disable_numparse=True) + "\n"
