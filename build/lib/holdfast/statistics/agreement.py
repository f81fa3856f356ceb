"""How well two raters agree."""

from __future__ import annotations

CONFIDENCE = 0.95


def accuracy(right: int, count: int) -> list[float] | None:
    """[value, low, high] with Wilson's 95 % interval; None of nothing."""
    from statsmodels.stats.proportion import proportion_confint

    if not count:
        return None
    return [right / count, *map(float, proportion_confint(right, count, 1 - CONFIDENCE, method="wilson"))]


def kappa(table: list[list[int]]) -> list[float] | None:
    """Cohen's kappa of a square table of counts, as [value, low, high] with its asymptotic 95 % interval.

    None where both raters give one and the same answer throughout, and so nothing can be said.
    """
    import numpy as np
    from scipy import stats
    from statsmodels.stats.inter_rater import cohens_kappa

    if sum(1 for row in table if any(row)) < 2 and sum(1 for column in zip(*table, strict=True) if any(column)) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # of a table with an empty row the spread is not known
        result = cohens_kappa(table)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2) * result.std_kappa)
    return [float(result.kappa), float(result.kappa) - half, min(1.0, float(result.kappa) + half)]


def crossed(first: list[bool], second: list[bool]) -> list[list[int]]:
    """Counts of each pair of answers, False before True."""
    pairs = list(zip(first, second, strict=True))
    return [[pairs.count((a, b)) for b in (False, True)] for a in (False, True)]
