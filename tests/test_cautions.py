"""What is said where numbers say less than they seem to."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.reporting.cautions import cautions
from holdfast.statistics.rates import METRICS, UNMEASURED, Point, Sampled

CLEAN = {"asr": 0.1, "over_refusal": 0.1, "broken_benign": 0.0, "utility": 0.612, "unscored": 0.0}
NOISE = ("weight_noise", "weight noise", 0.6)


def rates(**changes: float):
    found = dict.fromkeys(METRICS, UNMEASURED)
    for name, rate in {**CLEAN, **changes}.items():
        found[name] = Sampled(np.array([rate]), np.full((1, 2), rate), np.full((1, 5), rate))
    return found


@pytest.mark.parametrize(
    ("clean", "noisy", "told"),
    [
        ({}, {"utility": 0.611}, []),
        ({}, {"asr": 0.2}, []),
        ({"asr": 0.6}, {"asr": 0.7}, ["tiny/sft: aligned answers 60% of the harmful prompts undisturbed; it is not"]),
        ({}, {}, ["tiny/sft: weight_noise at level 0.6 changed nothing of aligned, zo_all; it may not have reached"]),
        ({"unscored": 0.1}, {"asr": 0.2, "unscored": 0.1}, ["tiny/sft: the judge left 10% of the responses unscored"]),
    ],
)
def test_cautions(clean, noisy, told):
    metrics = {}
    for method in ("aligned", "zo_all"):
        metrics[Point("tiny/sft", method, "none", "clean", 0.0)] = rates(**clean)
        metrics[Point("tiny/sft", method, *NOISE)] = rates(**(clean | noisy))
    found = cautions(metrics, "aligned")
    assert len(found) == len(told)
    assert all(one.startswith(words) for one, words in zip(found, told, strict=True))
