"""The estimate of a metric, and of its difference to another, with what its interval depends on."""

from __future__ import annotations

import numpy as np

from holdfast.reporting.options import Claims
from holdfast.reporting.setting import Setting
from holdfast.statistics import intervals
from holdfast.statistics.intervals import NOTHING, Difference, Estimate, Prompts
from holdfast.statistics.rates import Metrics, Point

SHARES = {  # metric -> the label of the prompts that it is a share of
    "asr": "harmful",
    "asr_matched": "harmful",
    "asr_margin": "harmful",
    "asr_clean_threshold": "harmful",
    "refused": "harmful",
    "partial": "harmful",
    "broken": "harmful",
    "unscored": "harmful",
    "refused_to_complied": "harmful",
    "complied_to_refused": "harmful",
    "over_refusal": "benign",
    "broken_benign": "benign",
    "auroc": "harmful",  # of pairs of a harmful and a benign prompt
}
VERDICTS = ("asr", "refused", "partial", "broken", "broken_benign", "unscored", "over_refusal", "auroc")
METRICS = (*SHARES, "margin", "utility")


def sampled(metrics: Metrics, model: str, method: str, at: tuple[str, str, float], metric: str) -> np.ndarray:
    """A metric at (perturbation, family, level), (seeds, 1 + resamples); without seeds where it was not measured."""
    return np.asarray(metrics.get(Point(model, method, *at), {}).get(metric, np.empty((0, 1))), dtype=float)


def is_share(metric: str, setting: Setting) -> bool:
    return metric in SHARES or (metric == "utility" and setting.utility == "exact_match")


def redrawn(metric: str, setting: Setting) -> Prompts:
    """What was redrawn for a metric's interval; flips count as matched, for margins may have decided them."""
    return setting.prompts(SHARES.get(metric, "benign"), matched=metric in SHARES and metric not in VERDICTS)


def estimate(values: np.ndarray, metric: str, setting: Setting) -> Estimate:
    """A metric over seeds, from (seeds, 1 + resamples)."""
    prompts = redrawn(metric, setting)
    if is_share(metric, setting):
        return intervals.share(values, prompts, setting.confidence)
    found: Estimate = intervals.difference(values, prompts, setting.confidence)
    if metric == "utility":  # NLL per token: the interval is of the logarithm of the perplexity
        found = Estimate(*np.exp([found.mean, found.low, found.high]).tolist())
    return found


def judged_points(metrics: Metrics, claims: Claims) -> dict[str, tuple[str, str, float] | None]:
    """Family of the claims -> the point at which it is judged; None where the study lacks it."""
    points = {(point.perturbation, point.level): point[2:] for point in metrics}
    return {name: points.get((at.perturbation, float(at.level))) for name, at in claims.families.items()}


def compare(values: np.ndarray, others: np.ndarray, metric: str, setting: Setting) -> Difference:
    """`values` − `others`, paired by seed and prompt; of utility in NLL per token where that is its unit."""
    if values.shape != others.shape:
        return NOTHING
    return intervals.difference(
        values - others,
        redrawn(metric, setting),
        setting.confidence,
        margin=setting.margin,
        shares=is_share(metric, setting),
    )
