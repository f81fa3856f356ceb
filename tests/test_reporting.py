"""Tables from records of two methods whose outcomes are known."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from holdfast.perturbations import PERTURBATIONS
from holdfast.reporting.figures import steps_figure, style
from holdfast.reporting.judges import judges
from holdfast.reporting.measured import Measured
from holdfast.reporting.quantization import quantization
from holdfast.reporting.setting import Setting
from holdfast.reporting.tables import dose_response, main_table, terminal
from holdfast.reporting.trade_off import trade_off, trade_off_figure
from holdfast.settings.compose import composed
from holdfast.statistics.agreement import crossed, kappa
from holdfast.statistics.rates import Point

POINTS = [  # perturbation, family, level, draws, generated, ran, share of harmful prompts that comply
    ("none", "clean", 0, 1, True, "", {"aligned": 0.0, "zo_all": 0.0}),
    ("weight_noise", "weight noise", 0.3, 2, False, "", {"aligned": 0.1, "zo_all": 0.1}),
    ("weight_noise", "weight noise", 0.6, 2, True, "", {"aligned": 0.6, "zo_all": 0.1}),
    ("int8", "quantization", 8, 1, False, "CPU fallback", {"aligned": 0.1, "zo_all": 0.1}),
    ("rtn", "quantization", 2, 1, True, "simulated", {"aligned": 0.5, "zo_all": 0.5}),
]


def outcomes(label: str, split: str, count: int, complied: float, generated: bool) -> pd.DataFrame:
    """The first share of `complied` prompts comply; margins are 1 or −1, those of benign prompts −2."""
    complies = (np.arange(count) < complied * count) | (label == "benign")
    margin = np.where(complies, -2.0 if label == "benign" else -1.9, 1.0)
    verdict = np.where(complies, "complied", "refused") if generated and split == "test" else None
    ids = [f"{split} {label} {i}" for i in range(count)]
    found = pd.DataFrame({"id": ids, "pair": "", "margin": margin, "verdict": verdict})
    # Above the benign prompts of the test set: 5 % of the threshold set.
    found.loc[found.index < (0.9 * count if split == "threshold" else 0), "margin"] = -1.8
    return found.assign(split=split, label=label, utility=1.0 if label == "benign" else np.nan)


@pytest.fixture(scope="module")
def records():
    frames = []
    for method in ("aligned", "zo_all"):
        for seed in (0, 1, 2):
            for name, family, level, draws, generated, ran, complied in POINTS:
                splits = [("harmful", "test"), ("benign", "test"), ("benign", "threshold"), ("harmful", "tune")]
                for draw in range(draws):
                    at = {"perturbation": name, "family": family, "level": float(level), "draw": draw, "ran": ran}
                    frames += [
                        outcomes(*part, 40, complied[method], generated).assign(
                            model="tiny", method=method, seed=seed, **at
                        )
                        for part in (splits if method == "aligned" else splits[:3])
                    ]
    records = pd.concat(frames, ignore_index=True)
    unscored = (records["perturbation"] == "rtn") & (records["id"] == "test harmful 39")
    records.loc[unscored, "verdict"] = "unscored"
    return records


@pytest.fixture(scope="module")
def made(records):
    cfg = composed(
        [
            *("study.methods=[aligned,zo_all]", "tables.resamples=100"),
            *("tables.coverage.studies=50", "tables.coverage.matched_studies=5"),
        ]
    )
    measured = Measured.of(records, cfg)
    return measured.metrics, Setting.of(measured, cfg)


def test_main_table(made):
    metrics, setting = made
    table = main_table(metrics, setting)
    cells = table.frame.set_index(["metric", "method", "column"])
    noise = cells.loc["asr_matched", "zo_all", "weight noise σ=0.6"]
    assert (noise["estimate"], noise["difference"]) == pytest.approx((0.1, -0.5))
    assert noise["p"] < noise["p_holm"] < 0.05
    quantized = cells.loc["asr_matched", "zo_all", "quantization rtn ternary"]
    assert (quantized["difference"], quantized["p"]) == (0, 1)
    assert cells.loc["asr_matched", "aligned", "worst"]["estimate"] == pytest.approx(0.6)
    shown = table.shown.set_index(["metric", "method"]).iloc[1]
    assert "†" in shown["quantization rtn ternary"]
    assert "†" not in shown["weight noise σ=0.6"]
    assert "weight noise σ=0.6" in terminal(table.frame, setting)


def test_the_best_of_a_column_is_bold_in_every_format(made):
    table = main_table(*made)
    texts = table.texts()
    best = table.best.set_index(table.shown["method"])["weight noise σ=0.6"]
    assert best.loc["zo_all"].tolist() == [True, True]
    assert not best.loc["aligned"].any()
    assert not table.best["quantization rtn ternary"].any()  # where all are the same none is the best
    cell = table.shown[table.shown["method"] == "zo_all"]["weight noise σ=0.6"].iloc[0]
    assert f"| **{cell}** |" in texts["md"]
    assert f"<td><b>{cell}</b></td>" in texts["html"]
    assert re.search(r"\\textbf\{\\begin\{tabular\}\[t\]\{@\{\}c@\{\}\}10\.0\\\\\{\\tiny \[", texts["tex"])


def test_latex_groups_rows_and_drops_columns_that_say_nothing(made):
    tex = main_table(*made).texts()["tex"]
    assert tex.count(r"\emph{") == 2  # a heading for each ASR
    assert r"\emph{ASR at matched over-refusal (\%) $\downarrow$, tiny}" in tex
    assert "not measurable" not in tex.split(r"\toprule")[1]
    assert r"zo\_all" in tex


def test_a_long_table_goes_on_in_a_second_float(made):
    table = dose_response(*made)
    long = dataclasses.replace(table, shown=pd.concat([table.shown] * 5))
    tex = long.texts()["tex"]
    assert tex.count(r"\begin{table}") == tex.count("(continued)") + 1 > 1
    assert tex.count(r"\label{") == 1


def test_judges_counts_verdicts_and_agrees_with_margins_that_say_the_same(records, made):
    table = judges(records, made[1])
    at = table.frame.set_index(["perturbation", "level", "method", "label"])
    noise = at.loc["weight_noise", 0.6, "aligned", "harmful"]
    assert noise["complied"].tolist() == pytest.approx([0.6] * 3)
    assert noise["refused"].tolist() == pytest.approx([0.4] * 3)
    assert noise["responses"].tolist() == [80] * 3
    assert (table.frame[["agreement", "kappa"]].dropna() == 1).all(axis=None)
    rtn = at.loc["rtn", 2.0, "zo_all", "harmful"]
    assert rtn["unscored"].tolist() == pytest.approx([1 / 40] * 3)
    assert set(table.frame["perturbation"]) == {"none", "weight_noise", "rtn"}  # where responses were generated
    shown = table.shown.set_index(["perturbation", "label"])
    assert shown.loc[("weight noise", "harmful"), "complied"] == "35.0"


def test_kappa_by_hand():
    first, second = [True] * 6 + [False] * 4, [True] * 5 + [False] * 5
    # observed .9, by chance .6 · .5 + .4 · .5 = .5
    assert kappa(crossed(first, second))[0] == pytest.approx(0.8)
    assert kappa(crossed([True], [True])) is None


def test_the_trade_off_passes_through_the_primary_metric_by_margins(records, made):
    metrics, setting = made
    points = [("weight_noise", "weight noise", 0.6), ("rtn", "quantization", 2.0)]
    curve = trade_off(records, setting, points)
    at = curve[~curve["own"] & np.isclose(curve["over_refusal"], setting.over_refusal)]
    found = at.set_index(["column", "method"])["asr"]
    for at, column in zip(points, ("weight noise σ=0.6", "quantization rtn ternary"), strict=True):
        for method in ("aligned", "zo_all"):
            expected = metrics[Point("tiny", method, *at)]["asr_margin"][:, 0].mean()
            assert found[column, method] == pytest.approx(expected)
    for _, line in curve[~curve["own"]].groupby(["column", "method"]):
        assert line["asr"].is_monotonic_decreasing
    panels = trade_off_figure(records, setting, points, ["tiny"]).axes
    assert [axis.get_title(loc="left") for axis in panels] == [f"tiny, {c}" for c in curve["column"].unique()]


def test_steps_are_drawn_against_what_they_spent():
    rows = []
    for method, forwards in (("aligned", 0.0), ("zo_all_half", 200.0), ("zo_all", 400.0)):
        row = {"model": "tiny/sft", "family": "weight noise", "method": method, "forwards": forwards}
        rows.append(row | {"estimate": 0.5, "low": 0.4, "high": 0.6})
    (axis,) = steps_figure(pd.DataFrame(rows), "aligned", {"zo_all": ["zo_all_half", "zo_all"]}).axes
    (line,) = (c for c in axis.containers if c.get_label() == "zo_all")
    assert line.lines[0].get_xdata().tolist() == [200, 400]


def test_no_two_lines_look_alike():
    looks = [tuple(map(str, style(place).values())) for place in range(25)]
    assert len(set(looks)) == 25
    assert [look[0] for look in looks].count("#000000") == 1


def test_captions_state_what_an_interval_rests_on(made):
    caption = main_table(*made).caption
    for said in (
        *("3 seeds", "40 harmful and 40 benign", "weight_noise 1", "judge: rules, 6 responses unscored"),
        *("simulated: rtn", "CPU fallback: int8", "50 studies each", "new seeds and new prompts"),
    ):
        assert said in caption


def test_dose_response(made):
    table = dose_response(*made)
    area = table.shown[table.shown["level"] == "area"].iloc[0]
    # clean 0, then .1 at .3 and .6 at .6: (0.05 + 0.35) / 2
    assert area["aligned"].startswith("20.0 [")
    assert table.shown["perturbation"][table.shown["level"] == "area"].unique().tolist() == ["weight_noise"]
    at = table.frame.set_index(["method", "perturbation", "level"]).loc["aligned", "weight_noise", 0.3]
    assert np.isnan(at["asr"])
    assert at["asr_matched_low"] < at["asr_matched"] < at["asr_matched_high"]


def test_quantization(made):
    table = quantization(*made)
    assert table.shown["scheme"].unique().tolist() == ["clean", "int8", "rtn ternary"]
    assert table.shown.groupby("scheme")["ran"].first().to_dict() == {
        "clean": "",
        "int8": "CPU fallback",
        "rtn ternary": "simulated",
    }
    assert table.shown.groupby("scheme")["flips by"].first()["int8"] == "margins"
    cells = table.frame.set_index(["scheme", "metric", "minus_clean", "method"])["estimate"]
    assert cells["int8", "refused_to_complied", False, "aligned"] == pytest.approx(0.1)
    assert cells["rtn ternary", "refused_to_complied", False, "aligned"] == pytest.approx(20 / 39)
    assert cells["rtn ternary", "asr", True, "aligned"] == pytest.approx(20 / 39)
    assert cells["rtn ternary", "complied_to_refused", False, "aligned"] == 0
    assert r"$\rightarrow$" in table.texts()["tex"]


def setting_of(made, **kinds):
    """With perturbations of these kinds, by name."""
    perturbations = {name: PERTURBATIONS[kind].model_construct(kind=kind) for name, kind in kinds.items() if kind}
    return dataclasses.replace(made[1], perturbations=perturbations)


@pytest.mark.parametrize(
    ("name", "kind", "level", "label"),
    [
        ("none", "", 0, "clean"),
        ("weight_noise", "weight_noise", 0.5, "σ=0.5"),
        ("w4a4", "fake_quant", 4, "w4a4"),
        ("torchao_int8", "torchao", 8, "torchao int8"),
        ("magnitude", "magnitude", 0.5, "magnitude 50 %"),
        ("decoding", "decoding", 1, "T=1"),
        ("prefill", "prefill", 5, "5 tokens"),
        ("benign_finetuning", "finetune", 20, "20 steps"),
    ],
)
def test_labels_read_well(made, name, kind, level, label):
    assert setting_of(made, **{name: kind}).label(name, level) == label


def test_a_label_tells_two_of_a_kind_apart(made):
    setting = setting_of(made, benign_tuning="finetune", harmful_tuning="finetune")
    assert setting.label("harmful_tuning", 5) == "harmful tuning 5 steps"
