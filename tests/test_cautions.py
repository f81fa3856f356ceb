"""What is said where numbers say less than they seem to."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from holdfast.models.distance import Change
from holdfast.reporting.cautions import cautions, cautions_of_costs, rise
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


@pytest.mark.parametrize(
    ("refined", "evaluated", "told"),
    [
        ({"stability": 0.9, "rise": -5.0}, {"moved": 0.01, "rounding": 0.1}, []),
        ({"stability": math.nan, "rise": math.nan}, {"moved": 0.01, "rounding": 0.1}, []),
        ({"stability": 0.12}, {}, ["tiny/sft: zo_all's layers are chosen again in 12% of the probe's redraws"]),
        ({}, {"moved": 0.0, "rounding": 0.0}, ["tiny/sft: zo_all moved nothing"]),
        ({}, {"moved": 1e-5, "rounding": 0.9}, ["tiny/sft: zo_all's change of the weights is rounding by 90%"]),
        ({"rise": 3.0}, {"moved": 0.01}, ["tiny/sft: zo_all's loss rose"]),
    ],
)
def test_cautions_of_refinements(refined, evaluated, told):
    head = {"model": "tiny/sft", "method": "zo_all", "seed": 0}
    rows = [{**head, "stage": "refine", **refined}, {**head, "stage": "evaluate", **evaluated}]
    rows += [
        {**head, "method": "aligned", "stage": "evaluate", "moved": 0.0},
        {**head, "method": "", "stage": "align"},
    ]
    found = cautions_of_costs(pd.DataFrame(rows), "aligned")
    assert len(found) == len(told)
    assert all(one.startswith(words) for one, words in zip(found, told, strict=True))


def test_a_rise_is_one_beyond_the_noise_of_the_steps():
    noise = np.random.default_rng(0).normal(0, 0.1, 40)
    slope = np.linspace(0, 1, 40)
    assert rise(list(noise + slope)) > 2
    assert rise(list(noise - slope)) < -2
    assert abs(rise(list(noise))) < 2
    assert math.isnan(rise([1.0, 2.0, 3.0]))
    assert rise([1.0] * 8) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("units", "share"), [(0.4, 1.0), (30.0, 0.0)])
def test_a_change_below_a_unit_in_the_last_place_is_rounding(tmp_path, dtype, units, share):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(256, 256, generator=generator).to(dtype)
    step = units * torch.finfo(dtype).eps * before.double() * torch.randn(256, 256, generator=generator).sign()
    for name, weight in (("before", before), ("after", (before.double() + step).to(dtype))):
        (tmp_path / name).mkdir()
        save_file({"w": weight, "norm": torch.ones(8)}, tmp_path / name / "model.safetensors")
    found = Change.of(tmp_path / "before", tmp_path / "after")
    assert found.rounding == pytest.approx(share, abs=0.01)
    assert units < 1 or found.moved == pytest.approx(units * torch.finfo(dtype).eps, rel=0.02)
    assert Change.of(tmp_path / "before", tmp_path / "before") == Change(0.0, 0.0)
