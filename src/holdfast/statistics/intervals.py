"""Intervals for what is measured at a few seeds, under a few draws of noise, on prompts that all of them share.

Two populations, two intervals. *New seeds*: every seed of the same training and every prompt of the same kind, both
drawn and crossed, as readers and cases are in a reader study. The variance is that of Obuchowski and Rockette
(Communications in Statistics - Simulation 24, 1995) for one treatment, between² / S + the covariance of two seeds'
values over redrawn prompts, with Satterthwaite's degrees of freedom as in Hillis (Statistics in Medicine 26, 2007),
the covariance's own degrees counted too. Draws are each seed's own, and so part of what varies between seeds. *These
checkpoints*: the seeds as they are, under every draw and for every prompt of the same kind. The variance is that of
the draws within seeds, and that over redrawn prompts; what a draw does to single prompts is in both, so that the
interval is a hair too wide. With one seed only this one is defined.

A share gets Wilson's interval at the effective number of prompts that the variance amounts to, with Student's quantile
(as surveys do: Franco et al., Journal of Survey Statistics and Methodology 7, 2019): it stays within [0, 1]. That
number is no more than one outcome for each prompt and seed, however many draws there are: near 0 and 1 too few
prompts vary to say how much they do. A share that is 0 or 1 at every seed and draw gets the exact interval of Clopper
and Pearson for as many outcomes. `coverage` simulates how often all this contains the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from holdfast.statistics.rates import Sampled


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval for new seeds, and with that for these checkpoints, in the unit of the values."""

    mean: float
    low: float
    high: float
    own_low: float = nan
    own_high: float = nan


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference, with its standard error for new seeds and its degrees of freedom. Each p is two-sided: it
    is below 1 − confidence just where the interval lies on one side of what is tested."""

    error: float = nan
    freedom: float = nan

    @property
    def p(self) -> float:
        """Against 0."""
        return min(2 * self._tail(abs(self.mean)), 1.0)

    def above(self, margin: float) -> float:
        """Small: it is above the margin."""
        return min(2 * self._tail(self.mean - margin), 1.0)

    def below(self, margin: float) -> float:
        """Small: it is below the margin."""
        return min(2 * self._tail(margin - self.mean), 1.0)

    def within(self, margin: float) -> float:
        """Small: it is within ± margin, by two one-sided tests (Schuirmann 1987)."""
        return max(self.below(margin), self.above(-margin))

    def __neg__(self) -> Difference:
        bounds = -self.high, -self.low, -self.own_high, -self.own_low
        return Difference(-self.mean, *bounds, self.error, self.freedom)

    def _tail(self, distance: float) -> float:
        if self.error == 0:
            return 0.0 if distance > 0 else 0.5 if distance == 0 else 1.0
        return float(stats.t.sf(distance / self.error, self.freedom))


@dataclass(frozen=True)
class Prompts:
    """What was redrawn: so many prompts in so many clusters, and the degrees of freedom that the covariance has from
    them. A quantile's spread is learned from the prompts beyond it alone, so there they are few."""

    count: int
    clusters: int
    freedom: float


NOTHING = Difference(nan, nan, nan)


@dataclass(frozen=True)
class Spread:
    """Variance of a mean, and its degrees of freedom; arrays of one shape."""

    variance: np.ndarray
    freedom: np.ndarray


def over_seeds(values: np.ndarray, covariance: np.ndarray, prompts: Prompts) -> Spread:
    """Of new seeds, from values (..., seeds) of two or more and their covariances (..., seeds, seeds) over redraws."""
    seeds = values.shape[-1]
    own = np.trace(covariance, axis1=-2, axis2=-1)
    between = values.var(-1, ddof=1) / seeds
    common = np.maximum(covariance.sum((-2, -1)) - own, 0) / (seeds * (seeds - 1))
    return _together(between, seeds - 1, common, prompts.freedom)


def over_draws(draws: np.ndarray, covariance: np.ndarray, prompts: Prompts) -> Spread:
    """Of these seeds, from values (..., seeds, draws) and the covariances (..., seeds, seeds) of the seeds' means over
    redraws; a point with one draw has no other."""
    seeds, each = draws.shape[-2:]
    prompted = np.maximum(covariance.sum((-2, -1)), 0) / seeds**2
    if each == 1:
        return Spread(prompted, np.full_like(prompted, prompts.freedom))
    within = draws.var(-1, ddof=1).mean(-1) / (seeds * each)
    return _together(within, seeds * (each - 1), prompted, prompts.freedom)


def _together(one: np.ndarray, freedom: float, other: np.ndarray, others: float) -> Spread:
    """The sum of two variances, by Satterthwaite; where both are 0, nothing speaks for more degrees than the first
    has."""
    variance = one + other
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = variance**2 / (one**2 / freedom + other**2 / others)
    return Spread(variance, np.where(np.isfinite(degrees), degrees, freedom))


def share_bounds(
    mean: np.ndarray, found: Spread, observations: int, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds for a mean share, (...); `observations`: prompts times seeds. Where it is 0 or 1 throughout (redraws may
    stir a threshold, but cannot show an event that never happened), or nothing varies, the exact interval."""
    settled = (found.variance == 0) | (mean == 0) | (mean == 1)
    q = stats.t.ppf((1 + confidence) / 2, found.freedom)
    inner = np.clip(mean, 1 / observations, 1 - 1 / observations)
    with np.errstate(divide="ignore"):
        effective = np.minimum(inner * (1 - inner) / found.variance, observations)
    middle = (mean + q**2 / (2 * effective)) / (1 + q**2 / effective)
    half = q / (1 + q**2 / effective) * np.sqrt(mean * (1 - mean) / effective + (q / (2 * effective)) ** 2)
    hits, tail = mean * observations, (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        least = np.where(hits > 0, stats.beta.ppf(tail, hits, observations - hits + 1), 0.0)
        most = np.where(hits < observations, stats.beta.ppf(1 - tail, hits + 1, observations - hits), 1.0)
    low, high = np.where(settled, least, middle - half), np.where(settled, most, middle + half)
    # The bounds round to a hair's breadth on the wrong side of a mean of 0 or 1.
    return np.clip(low, 0, mean), np.clip(high, mean, 1)


def share(values: Sampled, prompts: Prompts, confidence: float) -> Estimate:
    """The mean over seeds of a share in [0, 1]."""
    if values.missing:
        return NOTHING
    mean, observations = values.value.mean(), len(values.value) * prompts.count
    wide, narrow = (share_bounds(mean, one, observations, confidence) for one in _spreads(values, prompts))
    return Estimate(float(mean), *map(float, wide), *map(float, narrow))


def difference(values: Sampled, prompts: Prompts, confidence: float, shares: bool = False) -> Difference:
    """The mean over seeds of an unbounded quantity, with Student's interval: a difference that is paired by seed, draw
    and prompt, above all. Between `shares` the variance is at least that of one discordant outcome each way among the
    prompts at every seed: pairs that all agree do not prove that none would differ."""
    if values.missing:
        return NOTHING
    least = 2 / (len(values.value) * prompts.count) ** 2 if shares else 0.0
    mean = float(values.value.mean())
    bounds: list[float] = []
    errors: list[float] = []
    freedoms: list[float] = []
    for found in _spreads(values, prompts):
        errors.append(float(np.sqrt(np.maximum(found.variance, least))))
        freedoms.append(float(found.freedom) if found.variance > least else prompts.freedom)
        half = float(stats.t.ppf((1 + confidence) / 2, freedoms[-1])) * errors[-1]
        bounds += [mean - half, mean + half]
    return Difference(mean, bounds[0], bounds[1], bounds[2], bounds[3], errors[0], freedoms[0])


def _spreads(values: Sampled, prompts: Prompts) -> tuple[Spread, Spread]:
    """For new seeds, and for these checkpoints; of one seed twice the latter."""
    redrawn = values.redrawn[:, np.isfinite(values.redrawn).all(0)]  # a redraw may miss every scored prompt
    # A bootstrap's variance is that of n, not of n − 1.
    covariance = np.atleast_2d(np.cov(redrawn)) * prompts.clusters / max(prompts.clusters - 1, 1)
    own = over_draws(values.draws, covariance, prompts)
    return (over_seeds(values.value, covariance, prompts) if len(values.value) > 1 else own), own


def student(values: np.ndarray, confidence: float, bounds: tuple[float, float] = (-inf, inf)) -> Estimate:
    """The mean of independent (seeds,) values with Student's interval, cut off where no value can lie; of one alone
    there is none."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return Estimate(float(known[0]) if len(known) else nan, nan, nan)
    half = float(stats.t.ppf((1 + confidence) / 2, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    mean = float(known.mean())
    return Estimate(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]))


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values of one family, (n,) like `p`; a NaN stays and does not count."""
    values = np.array(p, dtype=float)
    known = ~np.isnan(values)
    if known.any():
        values[known] = multipletests(values[known], method="holm")[1]
    return values
