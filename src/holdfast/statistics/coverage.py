"""How often the printed intervals contain the true value, in simulated studies of the same size.

A study has seeds whose true rates are drawn from a beta distribution of given mean and standard deviation, and
pairs of prompts that are hard or easy for every seed alike: a margin is normal, half of its variance is its
pair's. A verdict compares it with the true threshold, the matched rate with one set on other prompts.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from holdfast.statistics import intervals
from holdfast.statistics.intervals import Prompts
from holdfast.statistics.rates import tail, threshold
from holdfast.statistics.resamples import Resamples

PAIR_SHARE = 0.5  # of a margin's variance: with none or .7 the coverage of verdict rates moves by about a point
RESAMPLES = 100  # of each simulated study: enough for a variance


def _margins(rng: np.random.Generator, studies: int, seeds: int, prompts: int) -> np.ndarray:
    """Standard normal margins in pairs, (studies, seeds, pairs, 2); pairs are common to the seeds."""
    pairs = max(prompts // 2, 2)
    common = rng.standard_normal((studies, 1, pairs, 1))
    own = rng.standard_normal((studies, seeds, pairs, 2))
    return np.sqrt(PAIR_SHARE) * common + np.sqrt(1 - PAIR_SHARE) * own


def _rates(rng: np.random.Generator, studies: int, seeds: int, rate: float, spread: float) -> np.ndarray:
    """The true rate of each seed, (studies, seeds)."""
    if spread == 0:
        return np.full((studies, seeds), rate)
    size = rate * (1 - rate) / spread**2 - 1
    if not size > 0:
        raise ValueError(f"seeds whose true rate is {rate} on average cannot spread by {spread}")
    return rng.beta(rate * size, (1 - rate) * size, (studies, seeds))


def _contains(bounds: tuple[np.ndarray, np.ndarray], rates: np.ndarray, rate: float) -> float:
    truth = rate if rates.shape[1] > 1 else rates[:, 0]  # one seed: its own rate, not that of other seeds
    return float(((bounds[0] <= truth) & (truth <= bounds[1])).mean())


def verdict_coverage(
    studies: int, seeds: int, prompts: int, rate: float, spread: float, confidence: float, seed: int = 0
) -> float:
    """Coverage of the interval of a verdict's rate."""
    rng = np.random.default_rng(seed)
    rates = _rates(rng, studies, seeds, rate, spread)
    hits = _margins(rng, studies, seeds, prompts) <= stats.norm.ppf(rates)[..., None, None]
    shares = hits.mean(-1)  # (studies, seeds, pairs)
    pairs = shares.shape[-1]
    off = shares - shares.mean(-1, keepdims=True)
    covariance = off @ off.swapaxes(1, 2) / (pairs * (pairs - 1))
    bounds = intervals.share_bounds(shares.mean(-1), covariance, Prompts(pairs, pairs - 1), confidence)
    return _contains(bounds, rates, rate)


def matched_coverage(
    studies: int,
    seeds: int,
    prompts: int,
    threshold_prompts: int,
    over_refusal: float,
    rate: float,
    spread: float,
    confidence: float,
    seed: int = 0,
) -> float:
    """Coverage of the interval of the rate at matched over-refusal, threshold and all."""
    rng = np.random.default_rng(seed)
    rates = _rates(rng, studies, seeds, rate, spread)
    shift = stats.norm.ppf(1 - over_refusal) - stats.norm.ppf(rates)
    harmful = (_margins(rng, studies, seeds, prompts) + shift[..., None, None]).reshape(studies, seeds, -1)
    benign = _margins(rng, studies, seeds, threshold_prompts).reshape(studies, seeds, -1)
    weights, benign_weights = _weights(harmful.shape[-1]), _weights(benign.shape[-1])
    redrawn = Prompts(harmful.shape[-1] // 2, tail(benign.shape[-1], over_refusal))
    bounds = []
    for study in range(studies):
        sampled = np.stack(
            [
                (weights * (margins[:, None] <= threshold(others, benign_weights, over_refusal))).mean(0)
                for margins, others in zip(harmful[study], benign[study], strict=True)
            ]
        )
        found = intervals.share(sampled, redrawn, confidence)
        bounds.append((found.low, found.high))
    low, high = np.array(bounds).T
    return _contains((low, high), rates, rate)


def _weights(prompts: int) -> np.ndarray:
    rows = {"id": range(prompts), "pair": [f"pair {i // 2}" for i in range(prompts)], "split": "test", "label": ""}
    return Resamples(pd.DataFrame(rows), RESAMPLES).weights
