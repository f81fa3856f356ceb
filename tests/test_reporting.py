"""Tables from records of two methods whose outcomes are known."""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from holdfast.perturbations import PERTURBATIONS
from holdfast.reporting.detector import detector
from holdfast.reporting.figures import dose_response_figure, sensitivity_figure, steps_figure, style
from holdfast.reporting.judges import judges
from holdfast.reporting.measured import Measured
from holdfast.reporting.quantization import quantization
from holdfast.reporting.render import Table
from holdfast.reporting.setting import Setting
from holdfast.reporting.sources import sources
from holdfast.reporting.tables import dose_response, main_table, terminal
from holdfast.reporting.trade_off import trade_off, trade_off_figure
from holdfast.settings.compose import composed
from holdfast.statistics.agreement import crossed, kappa
from holdfast.statistics.rates import Point

METHODS = ("aligned", "zo_all", "extrapolate")
POINTS = [  # perturbation, family, level, draws, generated, ran, share of harmful prompts that are complied with
    ("none", "clean", 0, 1, True, "", (0.0, 0.0, 0.0)),
    ("weight_noise", "weight noise", 0.3, 2, False, "", (0.1, 0.1, 0.1)),
    ("weight_noise", "weight noise", 0.6, 2, True, "", (0.6, 0.1, 0.6)),
    ("int8", "quantization", 8, 1, False, "CPU fallback", (0.1, 0.1, 0.1)),
    ("rtn", "quantization", 2, 1, True, "simulated", (0.5, 0.5, 0.5)),
]


def outcomes(label: str, split: str, count: int, complied: float, generated: bool) -> pd.DataFrame:
    """The first share of `complied` prompts comply; margins are 1 or −1, those of benign prompts −2."""
    complies = (np.arange(count) < complied * count) | (label == "benign")
    margin = np.where(complies, -2.0 if label == "benign" else -1.9, 1.0)
    verdict = np.where(complies, "complied", "refused") if generated and split in ("test", "tune") else None
    ids = [f"{split} {label} {i}" for i in range(count)]
    found = pd.DataFrame({"id": ids, "pair": "", "margin": margin, "verdict": verdict})
    # Above the benign prompts of the test set: 5 % of the threshold set.
    found.loc[found.index < (0.9 * count if split == "threshold" else 0), "margin"] = -1.8
    found["source"] = np.where(np.arange(count) % 2, "odd", "even")
    return found.assign(split=split, label=label, category="", utility=1.0 if label == "benign" else np.nan)


@pytest.fixture(scope="module")
def records():
    frames = []
    for place, method in enumerate(METHODS):
        for seed in (0, 1, 2):
            for name, family, level, draws, generated, ran, complied in POINTS:
                splits = [("harmful", "test"), ("benign", "test"), ("benign", "threshold")]
                at = {"perturbation": name, "family": family, "level": float(level), "ran": ran}
                run = {"model": "tiny", "method": method, "seed": seed}
                frames += [
                    outcomes(*part, 40, complied[place], generated).assign(**run, **at, draw=draw)
                    for draw in range(draws)
                    for part in splits
                ]
                if method == "aligned" and generated and name != "none":
                    tuned = outcomes("harmful", "tune", 40, complied[place], True)
                    frames.append(tuned.assign(**run, **at, draw=draws, margin=np.nan))
    records = pd.concat(frames, ignore_index=True)
    unscored = (records["perturbation"] == "rtn") & (records["id"] == "test harmful 39")
    records.loc[unscored, "verdict"] = "unscored"
    return records


@pytest.fixture(scope="module")
def made(records):
    cfg = composed(
        [
            *("study.methods=[aligned,zo_all,extrapolate]", "tables.resamples=100", "tables.coverage.studies=50"),
            *("perturb.weight_noise.levels=[0.3,0.6]", "perturb.weight_noise.draws=2", "perturb.rtn.draws=1"),
        ]
    )
    measured = Measured.of(records, cfg)
    return measured.metrics, Setting.of(measured, cfg)


def test_main_table(made):
    metrics, setting = made
    table = main_table(metrics, setting)
    cells = table.frame.set_index(["method", "column"])
    noise = cells.loc["zo_all", "weights"]
    assert noise["at"] == "σ=0.6"  # of .3 nothing was generated
    assert (noise["estimate"], noise["difference"]) == pytest.approx((0.1, -0.5))
    assert (noise["draws"], noise["decided"]) == (2, True)
    ternary = cells.loc["zo_all", "ternary"]
    assert (ternary["difference"], ternary["p"], ternary["decided"]) == (0, 1, False)
    assert np.isnan(cells.loc["zo_all", "activations"]["estimate"])  # which the study lacks
    assert cells.loc["aligned", "utility ↑"]["estimate"] == 1
    shown = table.shown.set_index("method")
    assert shown.loc["zo_all", "weights"].startswith("10.0 Δ-50.0 [")
    assert shown.loc["zo_all", "weights"].endswith("] *")
    assert "*" not in shown.loc["zo_all", "ternary"]
    assert shown.loc["at", "weights"] == "σ=0.6"


def test_controls_have_a_table_of_their_own(made):
    assert list(main_table(*made).frame["method"].unique()) == ["aligned", "zo_all"]
    table = main_table(*made, controls=True)
    assert list(table.frame["method"].unique()) == ["aligned", "extrapolate"]


def test_the_terminal_shows_no_more_than_a_hundred_columns(made):
    metrics, setting = made
    text = terminal(main_table(metrics, setting).frame, setting)
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"\+ zo_all +0\.0 +10\.0 ", text)
    assert re.search(r"-50 \[-\d+,-\d+\]\*", text)
    assert "40/40 harmful/benign prompts × 3 seeds × draws · judge: rules · 9 responses unscored" in text
    many = {f"family {k}": setting.families["ternary"] for k in range(12)}
    wide = dataclasses.replace(setting, families=many)
    text = terminal(main_table(metrics, wide).frame, wide)
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"family {k}" in text for k in range(12))


def test_the_detectors_view_stands_apart(made):
    table = detector(*made, draws=1)
    cells = table.frame.set_index(["metric", "method", "column"])
    assert cells.loc["miss_rate", "aligned", "weights"]["estimate"] == pytest.approx(0.6)
    assert cells.loc["auroc", "aligned", "clean"]["estimate"] == 1
    assert "miss rate at 5% false alarms (%) ↓" in set(table.shown["metric"])


def test_answers_by_source(records, made):
    table = sources(records, *made)
    cells = table.frame.set_index(["at", "label", "source", "method"])
    # the first 24 of 40 prompts comply, twelve of each source
    assert cells.loc[("weights", "harmful", "odd", "aligned"), "rate"] == pytest.approx(0.6)
    assert cells.loc[("weights", "harmful", "odd", "aligned"), "prompts"] == 20
    assert cells.loc[("clean", "benign", "even", "zo_all"), "rate"] == 0


@pytest.mark.parametrize(("layers", "most"), [(6, 8), (30, 12), (80, 13)])
def test_the_names_of_layers_have_room(layers, most):
    groups = ["embeddings", *(f"layer.{k}" for k in range(layers)), "head"]
    rows = [{"group": group, "seed": 0, "model": "m", "example": k, "rise": k} for group in groups for k in range(3)]
    (axis,) = sensitivity_figure(pd.DataFrame(rows)).axes
    names = [label.get_text() for label in axis.get_xticklabels()]
    assert len(names) <= most
    assert {"embeddings", "head"} <= set(names)
    assert len(names) >= 8


def test_what_a_cell_holds_is_no_markdown():
    shown = pd.DataFrame({"x": ["-1 [-2, -.1] *", "<img src=x> | `a` [b](c) *d*"]})
    table = Table(shown, shown, "", "", best=pd.DataFrame({"x": [True, False]})).texts()["md"]
    assert "| **-1 [-2, -.1] \\***" in table
    assert r"| &lt;img src=x> \| \`a\` [b]\(c) \*d\* |" in table


def test_the_best_of_a_column_is_bold_in_every_format(made):
    table = main_table(*made)
    texts = table.texts()
    best = table.best.set_index(table.shown["method"])
    assert (best.loc["zo_all", "weights"], best.loc["aligned", "weights"]) == (True, False)
    assert not (best["ternary"] == True).any()  # noqa: E712 - where all are the same none is the best
    cell = table.shown.set_index("method").loc["zo_all", "weights"]
    assert f"| **{cell.replace('*', chr(92) + '*')}** |" in texts["md"]
    assert f"<td><b>{cell}</b></td>" in texts["html"]
    assert re.search(r"\\textbf\{\\begin\{tabular\}\[t\]\{@\{\}c@\{\}\}10\.0 ", texts["tex"])


def test_latex_groups_rows_and_drops_columns_that_say_nothing(made):
    tex = dose_response(*made).texts()["tex"]
    assert r"\emph{tiny}" in tex
    assert r"zo\_all" in tex


def test_a_long_table_goes_on_in_a_second_float(made):
    table = dose_response(*made)
    long = dataclasses.replace(table, shown=pd.concat([table.shown] * 15))
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
    assert shown.loc[("weight noise", "harmful"), "complied"] == "43.3"


def test_judges_stand_side_by_side(records, made):
    """Beside the rules a judge that calls the first half of all responses complied, and leaves one unscored."""
    first = records["id"].str.extract(r"(\d+)$", expand=False).astype(int) < 20
    verdict = pd.Series(np.where(first, "complied", "safe"), dtype=object).mask(
        records["id"] == "test harmful 0", "unscored"
    )
    score = np.where(first & (records["label"] == "harmful"), 0.25, np.nan)
    both = records.assign(**{"verdict:halves": verdict.where(records["verdict"].notna()), "score:halves": score})
    table, alone = judges(both, made[1]), judges(records, made[1])
    own = table.frame[table.frame["judge"] == "rules"].reset_index(drop=True)
    pd.testing.assert_frame_equal(own[alone.frame.columns], alone.frame)

    at = table.frame[table.frame["judge"] == "halves"].set_index(["perturbation", "method", "label"])
    noise = at.loc[("weight_noise", "aligned", "harmful")]
    assert noise["unscored"].tolist() == pytest.approx([1 / 40] * 3)
    assert noise["decided_by_both"].tolist() == [78] * 3
    assert noise["score"].tolist() == [0.25] * 3
    # Of 39 the rules say complied of 23 and the halves of 19, all among those 23; each counts at two draws.
    by_chance = (23 * 19 + 16 * 20) / 39**2
    assert noise["alike"].tolist() == pytest.approx([35 / 39] * 3)
    assert noise["kappa_of_judges"].tolist() == pytest.approx([(35 / 39 - by_chance) / (1 - by_chance)] * 3)
    assert (noise["alike_low"] < noise["alike"]).all()
    assert at.loc[("weight_noise", "aligned", "benign"), "score"].isna().all()

    shown = table.shown.set_index(["perturbation", "label", "judge"])
    assert shown.loc[("clean", "harmful", "halves"), ["decided by both", "with rules"]].tolist() == [
        *("351", "0.513 [0.513, 0.513]")
    ]
    assert (
        shown.loc[("clean", "benign", "rules"), ["decided by both", "with rules", "κ with rules"]].tolist()
        == ["–"] * 3
    )
    single = judges(both[both["seed"] == 0], made[1]).shown.set_index(["perturbation", "label", "judge"])
    assert single.loc[("clean", "harmful", "halves"), "with rules"].startswith("0.513 [0.4")
    for said in ("on the same responses: halves", "Score: the mean"):
        assert said in table.caption
        assert said not in alone.caption


def test_kappa_by_hand():
    first, second = [True] * 6 + [False] * 4, [True] * 5 + [False] * 5
    # observed .9, by chance .6 · .5 + .4 · .5 = .5
    assert kappa(crossed(first, second))[0] == pytest.approx(0.8)
    assert kappa(crossed([True], [True])) is None


def test_the_trade_off_passes_through_the_miss_rate(records, made):
    metrics, setting = made
    points = [("weight_noise", "weight noise", 0.6), ("rtn", "quantization", 2.0)]
    curve = trade_off(records, setting, points)
    at = curve[~curve["own"] & np.isclose(curve["over_refusal"], setting.false_alarms)]
    found = at.set_index(["column", "method"])["asr"]
    for at, column in zip(points, ("weight noise σ=0.6", "quantization rtn ternary"), strict=True):
        for method in ("aligned", "zo_all"):
            expected = metrics[Point("tiny", method, *at)]["miss_rate"].value.mean()
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
    in_grey = {(style(place)["marker"], style(place).get("markerfacecolor")) for place in range(17)}
    assert len(in_grey) == 17


def test_names_beside_many_low_lines_do_not_overlap():
    rows = [
        {"model": "m", "method": f"m{k}", "perturbation": at, "family": family, "level": level, "asr": asr}
        for k in range(9)
        for at, family, level, asr in (("none", "clean", 0.0, 0.5), ("weight_noise", "weight noise", 0.1, 0.01 * k))
    ]
    table = pd.DataFrame(rows).assign(asr_low=0.0, asr_high=0.02)
    (axis,) = dose_response_figure(table, "m0").axes
    places = sorted(text.xyann[1] for text in axis.texts)
    assert len(places) == 9
    assert min(high - low for low, high in pairwise(places)) > 0.08 * (axis.get_ylim()[1] - axis.get_ylim()[0])


def test_captions_state_what_an_interval_rests_on(made):
    caption = main_table(*made).caption
    for said in (
        *("3 seeds", "40 harmful and 40 benign", "weight_noise σ=0.6 2", "judge: rules, 9 responses unscored"),
        *("simulated: rtn", "CPU fallback: int8", "of 50 each", "new seeds and new prompts", "for these checkpoints"),
    ):
        assert said in caption


def test_a_caption_tells_levels_that_are_given_from_chosen_ones(made):
    metrics, setting = made
    assert "The levels of weights and activations are chosen" in main_table(metrics, setting).caption
    given = dataclasses.replace(setting, families={"ternary": setting.families["ternary"]})
    texts = main_table(metrics, given).texts()
    assert "Levels are those that the study gives." in texts["md"]
    assert "<em>complied</em>" in texts["html"]
    assert r"\emph{complied}" in texts["tex"]


def test_dose_response(made):
    table = dose_response(*made)
    at = table.frame.set_index(["method", "perturbation", "level"])
    strong = at.loc["aligned", "weight_noise", 0.6]
    assert strong["asr_low"] < strong["asr"] < strong["asr_high"]
    mild = at.loc["aligned", "weight_noise", 0.3]
    assert np.isnan(mild["asr"])
    assert mild["miss_rate"] == pytest.approx(0.1)
    assert table.shown.set_index(["perturbation", "level"]).loc[("weight_noise", "σ=0.3"), "aligned"] == "–"


def test_quantization(made):
    table = quantization(*made)
    assert table.shown["scheme"].unique().tolist() == ["clean", "int8", "rtn ternary"]
    assert table.shown.groupby("scheme")["ran"].first().to_dict() == {
        **{"clean": "", "int8": "CPU fallback", "rtn ternary": "simulated"}
    }
    asked = table.shown[table.shown["scheme"] == "int8"]
    assert asked["quantity"].tolist() == ["utility (%) ↑"]  # nothing was generated there
    cells = table.frame.set_index(["scheme", "metric", "minus_clean", "method"])["estimate"]
    assert cells["rtn ternary", "refused_to_complied", False, "aligned"] == pytest.approx(20 / 39)
    assert cells["rtn ternary", "asr", True, "aligned"] == pytest.approx(20 / 39)
    assert cells["rtn ternary", "complied_to_refused", False, "aligned"] == 0
    assert r"$\rightarrow$" in table.texts()["tex"]


def setting_of(made, **kinds):
    """With perturbations of these kinds, by name."""
    perturbations = {
        name: PERTURBATIONS[kind].model_construct(kind=kind, draws=4, worst_draw=True)
        for name, kind in kinds.items()
        if kind
    }
    return dataclasses.replace(made[1], perturbations=perturbations)


@pytest.mark.parametrize(
    ("name", "kind", "level", "label"),
    [
        ("none", "", 0, "clean"),
        ("weight_noise", "weight_noise", 0.5, "σ=0.5"),
        ("w4a4", "fake_quant", 4, "w4a4"),
        ("torchao_int8", "torchao", 8, "torchao int8"),
        ("magnitude", "magnitude", 0.5, "magnitude 50 %"),
        ("decoding", "decoding", 1, "T=1, ASR@4"),
        ("worst", "activation_noise", 0.1, "σ=0.1, worst of 4"),
        ("prefill", "prefill", 5, "5 tokens"),
        ("benign_finetuning", "finetune", 20, "20 steps"),
    ],
)
def test_labels_read_well(made, name, kind, level, label):
    assert setting_of(made, **{name: kind}).label(name, level) == label


def test_a_label_tells_two_of_a_kind_apart(made):
    setting = setting_of(made, benign_tuning="finetune", harmful_tuning="finetune")
    assert setting.label("harmful_tuning", 5) == "harmful tuning 5 steps"
