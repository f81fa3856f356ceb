"""Intervals for what is measured at a few seeds on prompts that all seeds share.

The population is every seed of the same training and every prompt of the same kind: both were drawn, and they
are crossed, as readers and cases are in a reader study. The variance is that of Obuchowski and Rockette
(Communications in Statistics - Simulation 24, 1995) for one treatment, between² / S + the covariance of two
seeds' values over redrawn prompts, with Satterthwaite's degrees of freedom as in Hillis (Statistics in Medicine
26, 2007), the covariance's own degrees counted too. A share gets Wilson's interval at the effective number of
prompts that this variance amounts to, with Student's quantile (as surveys do: Franco et al., Journal of Survey
Statistics and Methodology 7, 2019): it stays within [0, 1] and has a length where nothing was observed. With one
seed the population is the prompts alone. `coverage` simulates how often all this contains the truth.

`sampled`, (seeds, 1 + resamples), holds the measured value of each seed, then its values over redrawn prompts,
the same redraw for all seeds. Functions on plain arrays take values (..., seeds) and covariances
(..., seeds, seeds) and give (...).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference; `p` is two-sided, `equivalence` that of two one-sided tests (Schuirmann 1987), and
    `inferiority` that of the one against being above the margin."""

    p: float
    equivalence: float
    inferiority: float


@dataclass(frozen=True)
class Prompts:
    """What was redrawn: so many clusters, and the degrees of freedom that the covariance has from them. A quantile's
    spread is learned from the prompts beyond it alone, so there they are few."""

    clusters: int
    freedom: float


NOTHING = Difference(nan, nan, nan, nan, nan, nan)


def spread(
    values: np.ndarray, covariance: np.ndarray, prompts: Prompts, least: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the mean over seeds, taken to be no less than `least`, and its degrees of freedom."""
    seeds = values.shape[-1]
    own = np.trace(covariance, axis1=-2, axis2=-1)
    if seeds == 1:
        return np.maximum(own, least), np.full_like(own, prompts.freedom)
    between = values.var(-1, ddof=1) / seeds
    common = np.maximum(covariance.sum((-2, -1)) - own, 0) / (seeds * (seeds - 1))
    variance = between + common
    with np.errstate(invalid="ignore"):
        freedom = variance**2 / (between**2 / (seeds - 1) + common**2 / prompts.freedom)
    # Where seeds and prompts all agree, nothing speaks for more degrees of freedom than the seeds have.
    return np.maximum(variance, least), np.where(variance > least, freedom, seeds - 1)


def share_bounds(
    values: np.ndarray, covariance: np.ndarray, prompts: Prompts, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds for a mean of shares in [0, 1]. Where nothing varies, or what was measured is 0 or 1 at every seed
    (redraws may stir a threshold, but cannot show an event that never happened), every seed and cluster counts as
    one independent observation, which is where the formula tends to as the last success vanishes."""
    variance, freedom = spread(values, covariance, prompts)
    mean, seeds = values.mean(-1), values.shape[-1]
    settled = (variance == 0) | (mean == 0) | (mean == 1)
    freedom = np.where(settled & (seeds > 1), seeds - 1, freedom)
    q = stats.t.ppf((1 + confidence) / 2, freedom)
    observations = seeds * prompts.clusters
    inner = np.clip(mean, 1 / observations, 1 - 1 / observations)
    with np.errstate(divide="ignore"):
        effective = np.where(settled, observations, inner * (1 - inner) / variance)
    middle = (mean + q**2 / (2 * effective)) / (1 + q**2 / effective)
    half = q / (1 + q**2 / effective) * np.sqrt(mean * (1 - mean) / effective + (q / (2 * effective)) ** 2)
    # The bounds round to a hair's breadth on the wrong side of a mean of 0 or 1.
    return np.clip(middle - half, 0, mean), np.clip(middle + half, mean, 1)


def share(sampled: np.ndarray, prompts: Prompts, confidence: float) -> Estimate:
    """The mean over seeds of a share in [0, 1]."""
    if not _measured(sampled):
        return NOTHING
    low, high = share_bounds(sampled[:, 0], _covariance(sampled, prompts), prompts, confidence)
    return Estimate(float(sampled[:, 0].mean()), float(low), float(high))


def difference(
    sampled: np.ndarray, prompts: Prompts, confidence: float, margin: float = 0.0, shares: bool = False
) -> Difference:
    """The mean over seeds of an unbounded quantity, with Student's interval: a difference that is paired by seed
    and prompt, above all, then tested against 0.

    `equivalence` small: it is within ± `margin`; `inferiority` small: it is below `margin`. Between `shares` the
    variance is at least that of one discordant outcome each way, for pairs that all agree do not prove that none would
    differ.
    """
    if not _measured(sampled):
        return NOTHING
    least = 2 / (len(sampled) * prompts.clusters) ** 2 if shares else 0.0
    variance, freedom = spread(sampled[:, 0], _covariance(sampled, prompts), prompts, least)
    middle, error = float(sampled[:, 0].mean()), float(np.sqrt(variance))
    half = stats.t.ppf((1 + confidence) / 2, freedom) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.divide(abs(middle), error), freedom)
        outside = stats.t.sf(np.divide(margin - abs(middle), error), freedom)
        above = stats.t.sf(np.divide(margin - middle, error), freedom)
    return Difference(middle, float(middle - half), float(middle + half), float(p), float(outside), float(above))


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


def _measured(sampled: np.ndarray) -> bool:
    return len(sampled) > 0 and not np.isnan(sampled[:, 0]).any()


def _covariance(sampled: np.ndarray, prompts: Prompts) -> np.ndarray:
    redrawn = sampled[:, 1:]
    redrawn = redrawn[:, np.isfinite(redrawn).all(0)]  # a redraw may miss every scored prompt
    # A bootstrap's variance is that of n, not of n − 1.
    return np.atleast_2d(np.cov(redrawn)) * prompts.clusters / max(prompts.clusters - 1, 1)
