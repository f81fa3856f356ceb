"""How often the printed intervals contain the true value, in simulated studies of the same size.

A study has seeds whose true rates are drawn from a beta distribution; each seed has draws of noise, whose true rates
are drawn around the seed's in the same way; and pairs of prompts that are hard or easy for every seed and draw alike:
a margin is normal, half of its variance is its pair's. A verdict compares it with the true threshold. How far seeds
and draws spread is told by the correlation of two outcomes of one seed, or of one draw: the share of an outcome's
variance, rate · (1 − rate), that is theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from holdfast.statistics import intervals
from holdfast.statistics.intervals import Prompts

PAIR_SHARE = 0.5  # of a margin's variance: with none or .7 the coverage moves by about a point


class Size(NamedTuple):
    """Of a study."""

    seeds: int
    draws: int
    prompts: int


class Covered(NamedTuple):
    """Shares of the studies whose interval contains the true value."""

    new_seeds: float
    checkpoints: float


def coverage(
    studies: int, size: Size, rate: float, between: float, within: float, confidence: float, seed: int = 0
) -> Covered:
    """Of the intervals of a verdict's rate; `between` and `within`: the correlations of outcomes of one seed, and of
    one draw of it."""
    rng = np.random.default_rng(seed)
    seeds = _spread(rng, np.full((studies, size.seeds), rate), between)
    draws = _spread(rng, np.repeat(seeds[..., None], size.draws, axis=2), within)
    pairs = max(size.prompts // 2, 2)
    common = rng.standard_normal((studies, 1, 1, pairs, 1), dtype=np.float32)
    own = rng.standard_normal((studies, size.seeds, size.draws, pairs, 2), dtype=np.float32)
    margins = np.sqrt(PAIR_SHARE, dtype=np.float32) * common + np.sqrt(1 - PAIR_SHARE, dtype=np.float32) * own
    shares = (margins <= stats.norm.ppf(draws)[..., None, None]).mean(-1)  # (studies, seeds, draws, pairs)
    values, each = shares.mean((2, 3)), shares.mean(2)
    off = each - each.mean(-1, keepdims=True)
    covariance = off @ off.swapaxes(1, 2) / (pairs * (pairs - 1))
    prompts, observations = Prompts(2 * pairs, pairs, pairs - 1), 2 * size.seeds * pairs
    here = intervals.over_draws(shares.mean(-1), covariance, prompts)
    anew = intervals.over_seeds(values, covariance, prompts) if size.seeds > 1 else here
    found = [intervals.share_bounds(values.mean(-1), one, observations, confidence) for one in (anew, here)]
    truths = (np.full(studies, rate) if size.seeds > 1 else seeds.mean(-1), seeds.mean(-1))
    inside = [(low <= truth) & (truth <= high) for (low, high), truth in zip(found, truths, strict=True)]
    return Covered(*(float(one.mean()) for one in inside))


def _spread(rng: np.random.Generator, means: np.ndarray, correlation: float) -> np.ndarray:
    """Beta rates of these means, whose variance is this share of that of single outcomes."""
    if correlation == 0:
        return means
    size = 1 / correlation - 1
    inside = (means > 0) & (means < 1)
    rates = rng.beta(np.maximum(means * size, 1e-9), np.maximum((1 - means) * size, 1e-9))
    return np.where(inside, rates, means)
