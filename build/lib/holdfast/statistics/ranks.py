"""How far orders of layers agree, and the sets of the first k."""

from __future__ import annotations

from itertools import combinations
from math import nan

import numpy as np
from scipy import stats

from holdfast.statistics.intervals import Estimate, student


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis, ties ranked in the middle; NaN where either side is constant."""
    ranks = [stats.rankdata(values, axis=-1) for values in (one, other)]
    off = [r - r.mean(-1, keepdims=True) for r in ranks]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (off[0] * off[1]).sum(-1) / np.sqrt((off[0] ** 2).sum(-1) * (off[1] ** 2).sum(-1))


def jaccard(one: np.ndarray, other: np.ndarray, k: int) -> float:
    """The share that the k layers of highest value have in common, of those that either side has."""
    a, b = (set(first(values, k).tolist()) for values in (one, other))
    return len(a & b) / len(a | b)


def first(values: np.ndarray, k: int) -> np.ndarray:
    """The places of the k highest values along the last axis, in order of place."""
    return np.sort(np.argsort(-values, axis=-1, kind="stable")[..., :k], axis=-1)


def pairwise(agreement: np.ndarray, confidence: float) -> Estimate:
    """The mean over pairs of seeds of (seeds, seeds) agreement, with Student's interval from the jackknife over seeds
    (Arvesen, Annals of Mathematical Statistics 40, 1969): pairs that share a seed are not independent. Of two seeds
    there is no interval."""
    seeds = len(agreement)
    if seeds < 2:
        return Estimate(nan, nan, nan)
    mean = _mean_pair(agreement)
    if seeds == 2:
        return Estimate(mean, nan, nan)
    without = [_mean_pair(np.delete(np.delete(agreement, s, 0), s, 1)) for s in range(seeds)]
    # The pseudo-values' mean is the statistic itself.
    return student(seeds * mean - (seeds - 1) * np.array(without), confidence, (-1.0, 1.0))


def _mean_pair(agreement: np.ndarray) -> float:
    return float(np.mean([agreement[pair] for pair in combinations(range(len(agreement)), 2)]))
