"""Intervals for rates: across seeds Student's t, and never narrower than what the number of prompts allows."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def rate(by_seed: np.ndarray, prompts: int, confidence: float) -> Estimate:
    """A rate in [0, 1] from its value at each seed, shape (seeds,), all on the same `prompts` prompts.

    With one seed: Wilson. With more: the t interval of the seed means, widened to the Wilson interval of the
    pooled rate over `prompts` (not seeds × prompts, for the prompts are shared), because few seeds that
    happen to agree say nothing of other prompts.
    """
    if len(by_seed) == 0 or np.isnan(by_seed).any():
        return Estimate(nan, nan, nan)
    mean = float(by_seed.mean())
    low, high = proportion_confint(mean * prompts, prompts, alpha=1 - confidence, method="wilson")
    if len(by_seed) > 1:
        t = mean_t(by_seed, confidence)
        low, high = min(low, t.low), max(high, t.high)
    # Wilson's bounds round to a hair's breadth on the wrong side of a mean of 0 or 1.
    return Estimate(mean, max(0.0, min(mean, float(low))), min(1.0, max(mean, float(high))))


def mean_t(by_seed: np.ndarray, confidence: float) -> Estimate:
    """The mean over seeds, shape (seeds,), with Student's t interval; without an interval for one seed."""
    mean = float(by_seed.mean())
    if len(by_seed) < 2:
        return Estimate(mean, nan, nan)
    half = stats.t.ppf((1 + confidence) / 2, len(by_seed) - 1) * by_seed.std(ddof=1) / sqrt(len(by_seed))
    return Estimate(mean, float(mean - half), float(mean + half))
