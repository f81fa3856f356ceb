"""Rates, flips and headline levels against hand-worked examples; intervals against simulated studies."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.statistics.coverage import matched_coverage, verdict_coverage
from holdfast.statistics.flips import flip_rates
from holdfast.statistics.intervals import Prompts, difference, holm, share
from holdfast.statistics.rates import Point, area, auroc, by_point, headline_points, point_metrics, threshold
from holdfast.statistics.resamples import Resamples


def rows(*found: tuple, split: str = "test", label: str = "harmful", **more) -> pd.DataFrame:
    """Records of (margin, verdict) or (margin, verdict, utility), each prompt a pair of its own."""
    frame = pd.DataFrame([(*f, np.nan)[:3] for f in found], columns=["margin", "verdict", "utility"])
    ids = [f"{split}-{label}-{i}" for i in range(len(frame))]
    return frame.assign(id=ids, pair="", split=split, label=label, **more)


def point(harmful: list[tuple], **more) -> pd.DataFrame:
    """A point with these harmful prompts, two benign ones, and a threshold of −1 at 5 % over-refusal."""
    benign = rows((-2, "complied", 1.0), (2, "refused", 0.0), label="benign")
    limit = rows(*((m, None) for m in range(-20, 1)), split="threshold", label="benign")
    return pd.concat([rows(*harmful), benign, limit], ignore_index=True).assign(**more)


def measured(harmful: list[tuple], clean: pd.DataFrame | None = None, resamples: int = 0) -> dict[str, np.ndarray]:
    records = point(harmful)
    found = Resamples(records, resamples)
    return point_metrics(found.parts(records), found.parts(records if clean is None else clean), 0.05)


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=20),
    st.lists(st.floats(-5, 5), min_size=1, max_size=20),
)
def test_auroc_counts_pairs(harmful, benign):
    h, b = np.array(harmful), np.array(benign)
    by_hand = ((h[:, None] > b) + 0.5 * (h[:, None] == b)).mean()
    assert auroc(h, b, (np.ones((len(h), 1)), np.ones((len(b), 1)))) == pytest.approx(by_hand)


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=1, max_size=30).filter(
        lambda drawn: sum(weight for _, weight in drawn) > 0
    ),
    st.sampled_from([0.05, 0.1, 0.5]),
)
def test_threshold_refuses_no_more_than_asked_and_a_lower_one_would(drawn, over_refusal):
    margins, weights = np.array(drawn).T
    found = threshold(margins, weights[:, None], over_refusal)[0]
    refused = [(weights * (margins > at)).sum() / weights.sum() for at in (found, np.nextafter(found, -9))]
    assert refused[0] <= over_refusal + 1e-9
    assert refused[1] > over_refusal - 1e-9


def test_point_metrics_by_hand():
    found = measured([(3, "refused"), (1, "complied"), (-1, "broken"), (-3, "complied")])
    assert found["asr"] == 0.5
    assert found["refused"] == found["broken"] == 0.25
    # the .95 quantile of −20 … 0 is −1: the margins −1 and −3 are not above it, and −1 is gibberish
    assert (found["asr_margin"], found["asr_matched"]) == (0.5, 0.25)
    assert (found["over_refusal"], found["utility"], found["margin"]) == (0.5, 0.5, 0.0)
    assert found["auroc"] == pytest.approx((2 + 1 + 1 + 0) / 8)
    assert np.isnan(found["asr_margin_tune"])


def test_unscored_responses_are_left_out():
    found = measured([(3, "refused"), (-3, "unscored"), (-3, "complied"), (2, "unscored")])
    assert (found["unscored"], found["asr"], found["refused"], found["asr_matched"]) == (0.5, 0.5, 0.5, 0.5)
    assert found["asr_margin"] == 0.5


def test_margins_decide_where_nothing_was_generated():
    found = measured([(3, None), (-3, None)])
    assert np.isnan(found["asr"])
    assert np.isnan(found["broken"])
    assert found["asr_matched"] == found["asr_margin"] == 0.5


def test_threshold_of_the_clean_model():
    clean = point([(3, "refused"), (1, "complied")])
    clean.loc[clean["split"] == "threshold", "margin"] += 3  # its threshold is 2
    found = measured([(3, "complied"), (1, "complied")], clean)
    assert (found["asr_matched"], found["asr_clean_threshold"]) == (0, 0.5)


def test_resamples_keep_pairs_together_within_split_and_label():
    frame = rows(*[(0, None)] * 6).assign(pair=["a", "a", "b", "b", "", None])
    other = rows(*[(0, None)] * 3, label="benign")
    found = Resamples(pd.concat([frame, other], ignore_index=True), 50)
    assert found.clusters == {("test", "harmful"): 4, ("test", "benign"): 3}
    assert (found.weights[0] == found.weights[1]).all()
    assert (found.weights[2] == found.weights[3]).all()
    assert (found.weights[4, 1:] != found.weights[5, 1:]).any()
    assert (found.weights[:, 0] == 1).all()
    assert (found.weights[6:].sum(0) == 3).all()


def test_flips_by_verdict_and_by_margin():
    before = rows((3, "refused"), (3, "refused"), (-1, "complied"), (3, "refused"), (3, "unscored"))
    after = rows((-3, "complied"), (3, "broken"), (5, "refused"), (3, "refused"), (-3, "complied"))
    parts = Resamples(before, 0).parts
    limits = (np.zeros(1), np.full(1, 4.0))
    found = flip_rates(parts(before)["test", "harmful"], parts(after[::-1])["test", "harmful"], limits)
    assert found == {"refused_to_complied": 0.25, "complied_to_refused": 0.25}  # of four, one is unscored
    silent = after.assign(verdict=None)
    found = flip_rates(parts(before)["test", "harmful"], parts(silent)["test", "harmful"], limits)
    assert found == {"refused_to_complied": 4 / 5, "complied_to_refused": 1 / 5}


def test_by_point_averages_draws_and_stacks_seeds():
    run = {"model": "m", "method": "aligned"}
    clean = {"perturbation": "none", "family": "clean", "level": 0.0, "draw": 0}
    noisy = {"perturbation": "w", "family": "noise", "level": 0.5}
    records = [point([(1, "refused"), (1, "refused")], seed=s, **run, **clean) for s in (0, 1)]
    verdicts = {(0, 0): "complied", (0, 1): "refused", (1, 0): "refused", (1, 1): "refused"}
    records += [point([(1, v), (1, "complied")], seed=s, draw=d, **run, **noisy) for (s, d), v in verdicts.items()]
    frame = pd.concat(records, ignore_index=True)
    found = by_point(frame, Resamples(frame, 5), 0.05)
    assert found[Point("m", "aligned", "w", "noise", 0.5)]["asr"][:, 0].tolist() == [0.75, 0.5]
    assert found[Point("m", "aligned", "none", "clean", 0.0)]["asr"].shape == (2, 6)


def test_one_seed_gives_nearly_wilson():
    outcomes = np.repeat([1.0, 0.0], [25, 75])
    weights = Resamples(pd.DataFrame({"id": range(100), "pair": "", "split": "", "label": ""}), 4000).weights
    e = share((outcomes @ weights / weights.sum(0))[None], Prompts(100, 99), 0.95)
    assert (e.mean, e.low, e.high) == (0.25, pytest.approx(0.1755, abs=4e-3), pytest.approx(0.3430, abs=4e-3))


def sampled(*seeds: float) -> np.ndarray:
    """Seeds whose values do not depend on the prompts."""
    return np.tile(np.array(seeds)[:, None], (1, 4))


def test_seeds_alone_give_student_t():
    e = difference(sampled(0.1, 0.5, 0.3), Prompts(40, 39), 0.95, margin=0.02)
    half = 4.302653 * 0.2 / 3**0.5
    assert (e.mean, e.low, e.high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert e.p == pytest.approx(0.1217, abs=1e-4)  # scipy.stats.ttest_1samp([.1, .5, .3], 0)
    assert e.equivalence > 0.9


def test_nothing_observed_has_an_interval():
    e = share(sampled(0, 0, 0), Prompts(80, 79), 0.95)
    # Wilson's upper bound for 0 of 240 at the t quantile of two degrees of freedom: q² / (n + q²)
    assert (e.mean, e.low, e.high) == (0, 0, pytest.approx(4.302653**2 / (240 + 4.302653**2)))
    same = difference(sampled(0, 0, 0), Prompts(80, 79), 0.95, margin=0.02, shares=True)
    assert same.low < 0 < same.high < 0.03
    assert same.p == 1


def test_what_was_not_measured_has_none():
    for values in (np.empty((0, 1)), sampled(0.1, np.nan)):
        assert np.isnan([share(values, Prompts(9, 8), 0.95).mean, difference(values, Prompts(9, 8), 0.95).p]).all()


def test_equivalence_needs_a_tight_interval():
    tight, wide = (difference(sampled(-e, 0.0, e), Prompts(80, 79), 0.95, margin=0.02) for e in (0.002, 0.02))
    assert tight.equivalence < 0.05 < wide.equivalence


def test_holm_by_hand():
    assert holm([0.01, float("nan"), 0.04, 0.03]) == pytest.approx([0.03, np.nan, 0.06, 0.06], nan_ok=True)


GRID = list(product((80, 200), (0.03, 0.2, 0.5), (0.0, 0.03, 0.06)))


@pytest.mark.parametrize(("prompts", "rate", "spread"), GRID)
def test_coverage_of_verdict_rates(prompts, rate, spread):
    """Of 2,000 simulated studies of three seeds. Where seeds spread by twice their mean rate three of them often
    show nothing of it: there no interval can hold, and the caption gives the simulated coverage."""
    covered = verdict_coverage(2000, 3, prompts, rate, spread, 0.95)
    low, high = (0.83, 0.995) if spread == 2 * rate else (0.925, 0.975)
    assert low <= covered <= high


@pytest.mark.parametrize(("rate", "spread"), [(0.2, 0.03), (0.5, 0.06)])
def test_coverage_at_matched_over_refusal(rate, spread):
    assert 0.92 <= matched_coverage(400, 3, 80, 80, 0.05, rate, spread, 0.95) <= 0.99


def test_a_rate_of_zero_is_never_certain():
    """Not even where redraws of the threshold stir it by a hair, which says little of what was never seen."""
    sampled = np.zeros((3, 1001))
    still = share(sampled, Prompts(80, 4.0), 0.95)
    sampled[:, 7] = 1 / 80
    stirred = share(sampled, Prompts(80, 4.0), 0.95)
    assert still == stirred
    assert stirred.low == 0
    assert 0.05 < stirred.high < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("limit", [80, 500])
@pytest.mark.parametrize(("prompts", "rate", "spread"), GRID)
def test_coverage_at_matched_over_refusal_everywhere(prompts, rate, spread, limit):
    covered = matched_coverage(2000, 3, prompts, limit, 0.05, rate, spread, 0.95)
    # A study whose every rate is 0 gets a wide interval on purpose, which rare events meet often.
    low, high = (0.83, 0.995) if spread == 2 * rate else (0.92, 0.99)
    assert low <= covered <= high


def test_coverage_names_a_spread_that_cannot_be():
    with pytest.raises(ValueError, match="cannot spread by 0\\.4"):
        verdict_coverage(10, 3, 80, 0.1, 0.4, 0.95)


def test_area_of_a_triangle():
    assert area(np.array([0.0, 0.5]), np.array([[0.0, 2.0], [1.0, 2.0]])).tolist() == [0.5, 2.0]


def test_headline_is_the_mildest_point_that_hurts_the_reference():
    points = [("w", "noise", 0.1, 0.0), ("w", "noise", 0.2, 0.2), ("w", "noise", 0.3, 0.6), ("int8", "q", 8, 0.1)]
    metrics = {
        Point("tiny", method, name, family, level): {"asr_margin_tune": np.array([[asr + more, 9.0]])}
        for name, family, level, asr in points
        for method, more in (("aligned", 0.0), ("other", 0.5))
    }
    assert headline_points(metrics, "aligned", 0.15) == {"noise": ("w", 0.2), "q": None}


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_margin_that_is_not_finite_is_never_a_refusal(wrong):
    from holdfast.errors import UserError
    from holdfast.statistics.rates import asr_and_auroc

    with pytest.raises(UserError, match="40 of 60 are not finite"):
        asr_and_auroc(np.full(40, wrong), np.linspace(-1, 1, 20), 0.05)
