"""From a difference's interval to a verdict, by the rules of the claims."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.statistics.intervals import Difference, Estimate

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
NOT_MEASURABLE, NOT_RUN = "not measurable", "not run"
Rule = Callable[[Difference, bool, float], str]
"""Of a difference, whether its p is significant, and the margin, to a verdict."""


def fragile(d: Difference, significant: bool, margin: float) -> str:
    """A rise of more than the margin."""
    return _verdict(significant and d.low > margin, d.high < margin)


def better(d: Difference, significant: bool, margin: float) -> str:
    """A fall; refuted by an interval that excludes a fall of the margin or more."""
    return _verdict(significant and d.high < 0, d.low > -margin)


def equivalent(d: Difference, significant: bool, margin: float) -> str:
    """Within ± margin; refuted by an interval beyond it."""
    return _verdict(significant and -margin < d.low and d.high < margin, d.low > margin or d.high < -margin)


def kept_low(d: Difference, significant: bool, margin: float) -> str:
    """Within ± margin, of what should not rise."""
    return _verdict(significant and -margin < d.low and d.high < margin, d.low > margin)


def kept_high(d: Difference, significant: bool, margin: float) -> str:
    """Within ± margin, of what should not fall."""
    return _verdict(significant and -margin < d.low and d.high < margin, d.high < -margin)


def as_good(d: Difference, significant: bool, margin: float) -> str:
    """No rise of the margin or more."""
    return _verdict(significant and d.high < margin, d.low > margin)


def above(e: Estimate, least: float) -> str:
    """An interval above `least`; refuted by one below it."""
    return _verdict(e.low > least, e.high < least)


def within(e: Estimate, most: float) -> str:
    """A cost at most `most`; it is counted, not estimated."""
    return _verdict(e.mean <= most, e.mean > most)


def _verdict(supported: bool, refuted: bool) -> str:
    return SUPPORTED if supported else NOT_SUPPORTED if refuted else INCONCLUSIVE
