"""From a difference's interval to a verdict, by the rules of the claims.

Every rule gives the p of its test, taken at its margin, and a verdict: *supported* where the interval lies where the
claim puts it, *not supported* where it excludes that, *inconclusive* between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from holdfast.statistics.intervals import Difference, Estimate

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
NOT_MEASURABLE, NOT_RUN = "not measurable", "not run"
NOT_FRAGILE, NOT_MOVED = "not asked: no fragility", "not asked: little moved"
SILENT = (NOT_RUN, NOT_MEASURABLE, NOT_FRAGILE, NOT_MOVED)  # nothing was tested


class Test(NamedTuple):
    """What a rule says."""

    p: float
    verdict: str


def fragile(d: Difference, margin: float) -> Test:
    """A rise of more than the margin."""
    return Test(d.above(margin), _verdict(d.low > margin, d.high < margin))


def better(d: Difference, margin: float, guards: Mapping[str, Difference], costs: Mapping[str, float]) -> Test:
    """A fall at which no guard, a worsening, is above what it may cost. Refuted by an interval that excludes a fall of
    the margin, or one of a guard that lies above its cost."""
    kept = [(guards[name], cost) for name, cost in costs.items() if name in guards]
    supported = d.high < 0 and all(g.high < cost for g, cost in kept)
    refuted = d.low > -margin or any(g.low > cost for g, cost in kept)
    return Test(max([d.below(0), *(g.below(cost) for g, cost in kept)]), _verdict(supported, refuted))


def equivalent(d: Difference, margin: float) -> Test:
    """Within ± margin."""
    inside = -margin < d.low and d.high < margin
    return Test(d.within(margin), _verdict(inside, d.low > margin or d.high < -margin))


def as_good(d: Difference, margin: float) -> Test:
    """No rise of the margin or more."""
    return Test(d.below(margin), _verdict(d.high < margin, d.low > margin))


def above(e: Estimate, least: float) -> str:
    """An interval above `least`; refuted by one below it."""
    return _verdict(e.low > least, e.high < least)


def within(e: Estimate, most: float) -> str:
    """A cost at most `most`; it is counted, not estimated."""
    return _verdict(e.mean <= most, e.mean > most)


def together(verdicts: Iterable[str], decided: bool) -> str:
    """Of a claim whose every part has to hold (an intersection-union test, Berger 1982): *supported* only where each
    part is, and where the largest p is small after its correction too; one refuted part refutes it. Parts that nothing
    was tested of are left out; of none but such, the first says why."""
    found = list(verdicts)
    tested = [one for one in found if one not in SILENT]
    if not tested:
        return found[0] if found else NOT_RUN
    return _verdict(decided and all(one == SUPPORTED for one in tested), NOT_SUPPORTED in tested)


def _verdict(supported: bool, refuted: bool) -> str:
    return SUPPORTED if supported else NOT_SUPPORTED if refuted else INCONCLUSIVE
