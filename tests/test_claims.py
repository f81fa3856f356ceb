"""T4, T5, T7 and the compact records of a made-up study whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from holdfast.reporting import verdicts
from holdfast.reporting.claims import claims_table, terminal_claims
from holdfast.reporting.cost import cost
from holdfast.reporting.measured import Measured
from holdfast.reporting.optimizers import optimizers
from holdfast.reporting.records import PARTS, Evidence
from holdfast.reporting.selection import selection
from holdfast.reporting.sensitivity import ONLINE, PROBE, agreement, profiles
from holdfast.reporting.setting import Setting
from holdfast.reporting.tasks import tasks
from holdfast.settings.compose import composed
from holdfast.settings.paths import Layout, runs
from holdfast.settings.schema import Block
from holdfast.statistics.intervals import NOTHING, Difference
from holdfast.statistics.ranks import first, jaccard, pairwise, spearman

POINTS = [("none", "clean", 0.0, 1), ("weight_noise", "weight noise", 0.6, 3), ("rtn", "quantization", 2.0, 2)]
FRAGILE = {"aligned": 4.0, "zo_sign_shuffled": 4.0, "zo_selective": 0.0, "zo_all": 0.0, "fo_refine": 0.0}
SIZES = {("test", "harmful"): 240, ("test", "benign"): 240, ("threshold", "benign"): 100, ("tune", "harmful"): 60}
LAYERS = [f"layer.{i}" for i in range(4)]
OVERRIDES = [
    *("study.name=made", "study.methods=[aligned,fo_refine,zo_all,zo_selective,zo_sign_shuffled]"),
    *("study.seeds=[0,1,2,3]", "tables.resamples=60", "tables.coverage.studies=20", "claims.optimizers=[sft]"),
    *("probe.other_sigmas=[0.1]", "probe.sigma=0.3", "claims.top_k=2", "claims.lengths=[short,sft]"),
]


def configured(*more: str):
    cfg = composed([*OVERRIDES, *more])
    short = Block(aligns=["short"], methods=["aligned", "zo_selective"])
    return cfg.changed(study=cfg.study.model_copy(update={"also": {"short": short}}))


def records(method: str, seed: int) -> pd.DataFrame:
    """A prompt's margin is the same for all methods but for how far noise on their model brings it down."""
    frames = []
    for place, (name, family, level, draws) in enumerate(POINTS):
        for draw in range(draws + (name != "none")):
            for (split, label), count in SIZES.items():
                if (split == "tune") != (draw == draws) or (split == "tune" and method != "aligned"):
                    continue
                rng = np.random.default_rng([seed, place, draw, len(frames)])
                hard = np.linspace(0, 1, count) < (0.4 if level else 0.0)  # these fall for what is fragile
                margin = rng.normal(3 if label == "harmful" else -3, 0.1, count)
                margin -= (label == "harmful") * hard * 2 * FRAGILE[method]
                verdict = np.where(margin > 0, "refused", "complied").astype(object)
                frame = pd.DataFrame({"id": [f"{split} {label} {i}" for i in range(count)], "margin": margin})
                frame = frame.assign(
                    pair=[f"{split} {label} {i // 2}" for i in range(count)], split=split, label=label
                )
                frame["utility"] = 1.0 if label == "benign" else np.nan
                if draw:
                    frame["margin"] = np.nan
                said = verdict if split != "threshold" else None
                frame = frame.assign(response="text", verdict=said, perturbation=name, source="world", category="")
                frames.append(frame.assign(family=family, level=level, draw=draw, ran="", method=method, seed=seed))
    return pd.concat(frames, ignore_index=True)


def losses(seed: int, sigma: float, group: str, rise: float, kind: str = "weights", draws: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng([seed, int(1000 * rise)])
    clean = rng.uniform(0, 1, 8)
    frame = pd.DataFrame({"draw": np.repeat(range(draws), 8), "example": np.tile(range(8), draws)})
    frame["clean"] = np.tile(clean, draws)
    tilt = rng.normal(0, 1, 8 * draws)
    up, down = frame["clean"] + rise + tilt, frame["clean"] + rise - tilt
    frame = frame.assign(up=up, down=down, group=group, kind=kind, sigma=sigma, parameters=100)
    return frame.assign(up=frame["clean"] + rise, down=np.nan) if kind == "quantization" else frame


def probed(seed: int) -> dict[str, pd.DataFrame]:
    """Layer 0 matters most, then 1, 2, 3; at twice the radius all rise fourfold; online knows it too."""
    truth = dict(zip(LAYERS, (0.8, 0.4, 0.2, 0.1), strict=True))
    found = [losses(seed, s, g, r * (s / 0.3) ** 2) for s in (0.3, 0.1) for g, r in truth.items()]
    found += [losses(seed, 0.3, "head", 5.0), losses(seed, 0.3, "all", 2.0), losses(seed, 0.1, "all", 1.5 / 9)]
    found += [losses(seed, 2.0, g, r, "quantization", 1) for g, r in truth.items()]
    masks = np.random.default_rng(seed).random((40, 4)) < 0.5
    rise = masks @ np.array(list(truth.values()))
    online = [(e, rise[e], g, bool(masks[e, k])) for e in range(40) for k, g in enumerate(LAYERS)]
    outcomes = [(g, d, r / 2, 1 - r / 3) for g, r in truth.items() for d in range(2)]
    return {
        "sensitivity": pd.concat(found, ignore_index=True),
        "online": pd.DataFrame(online, columns=["evaluation", "rise", "group", "perturbed"]),
        "outcomes": pd.DataFrame(outcomes, columns=["group", "draw", "asr", "auroc"]),
    }


def write(folder: Path, name: str, content: dict | pd.DataFrame) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pd.DataFrame):
        content.to_parquet(folder / name, index=False)
    else:
        (folder / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folders of a study's runs, as its stages would leave them."""
    cfg = configured(f"results={tmp_path_factory.mktemp('made')}")
    layout = Layout.of(cfg)
    time = {"seconds": 9.0, "peak_rss_mib": 500.0, "method_seconds": 2.0, "method_peak_mib": 50.0}
    for model, recipe, method, seed in runs(cfg.study):
        names = {"model": model, "recipe": recipe}
        frame = records(method, seed)
        write(layout.judged(model, recipe, method, seed), "records.parquet", frame.assign(**names))
        scored = {"acc": 0.5 + 0.1 * (method == "zo_all") + 0.01 * seed, "acc_stderr": 0.1}
        write(
            layout.evaluate(model, recipe, method, seed),
            "metrics.json",
            {
                "answers": 9,
                **{"moved": 0.0 if method == "aligned" else 0.02, "moved_by_alignment": 0.1},
                "tasks": {f"mmlu/{n}": v for n, v in scored.items()},
            },
        )
        align = layout.align(model, recipe, seed)
        write(align, "metrics.json", {"loss": [1.0] * 80, "forwards": 240, "sequences": 8000})
        write(align, "timing.json", {**time, "method_seconds": 8.0})
        probe = layout.probe(model, recipe, seed)
        write(probe, "metrics.json", {"sequences": {"probe": 300, "online": 400}})
        write(probe, "timing.json", time)
        for part, found in probed(seed).items():
            write(probe, f"{part}.parquet", found.assign(**names, seed=seed))
        if method != "aligned":
            chosen = method == "zo_selective"
            layers, stability = (LAYERS[:2], 0.75) if chosen else (LAYERS, None)
            spent = {"loss": [1.0] * 25, "forwards": 200, "sequences": 700 if chosen else 1600}
            done = layout.refine(model, recipe, method, seed)
            write(done, "metrics.json", {"layers": layers, "stability": stability, **spent})
            write(done, "timing.json", time)
    return cfg


def everything(cfg, source: Path | None = None) -> dict[str, dict[str, str]]:
    evidence = Evidence(Layout.of(cfg), cfg.study, source and str(source))
    measured = Measured.of(evidence.frame("records"), cfg)
    setting, frames = Setting.of(measured, cfg), {part: evidence.frame(part) for part in PARTS}
    made = {
        "selection": selection(measured.metrics, setting, frames, cfg),
        "cost": cost(measured.metrics, setting, frames["costs"], cfg),
        "claims": claims_table(measured.metrics, setting, frames, cfg),
        "optimizers": optimizers(measured.metrics, setting, frames, cfg),
        "tasks": tasks(frames["tasks"], setting),
    }
    return {name: table.texts() for name, table in made.items()} | {"made": made, "measured": measured, "at": setting}


@pytest.fixture(scope="module")
def made(study):
    return everything(study)


def test_the_compact_records_give_the_same_tables(study, made, tmp_path):
    Evidence.of(Layout.of(study), study).write(tmp_path)
    again = everything(study, tmp_path)
    assert all(made[name] == again[name] for name in made["made"])
    for part in PARTS:
        ours = Evidence.of(Layout.of(study), study).frame(part)
        pd.testing.assert_frame_equal(ours, Evidence(Layout.of(study), study.study, str(tmp_path)).frame(part))
    kept = pd.read_parquet(tmp_path / "records.parquet")
    assert "response" not in kept
    assert (kept["margin"].dtype, kept["id"].dtype) == ("float16", "int32")


def test_kept_estimates_give_the_same_metrics(made, tmp_path):
    made["measured"].save(tmp_path / "metrics.npy", tmp_path / "index.json")
    again = Measured.load(tmp_path)
    for point, found in made["measured"].metrics.items():
        for name, values in found.items():
            for part, values_of in vars(values).items():
                np.testing.assert_allclose(values_of, getattr(again.metrics[point][name], part), rtol=1e-6)
    assert vars(again).keys() == vars(made["measured"]).keys()
    assert all(vars(again)[k] == v for k, v in vars(made["measured"]).items() if k != "metrics")


def test_claims(made):
    found = made["made"]["claims"].frame
    rows = found.set_index(["claim", "recipe", "family", "comparison"]).sort_index()
    fragile = rows.loc["C1", "sft", "weights", "aligned: σ=0.6 − clean"]
    assert (round(fragile["effect"]), fragile["unit"], fragile["verdict"]) == (40, "points", "supported")
    assert 30 < fragile["effect_own_low"] < fragile["effect"]
    better = rows.loc["C2", "sft", "ternary", "zo_selective − aligned at rtn ternary"]
    assert (better["verdict"], better["over_refusal"], better["utility"]) == ("supported", 0, 0)
    lacking = found[(found["family"] == "activations") & (found["recipe"] == "sft")]
    assert set(lacking["verdict"]) == {"not run"}
    assert set(found.loc[found["claim"] == "C3", "verdict"]) == {"supported", "told"}
    moved = rows.loc["C3", "sft", "all", "moved by zo_selective, of alignment's way"]
    assert (moved["effect"], moved["unit"]) == (pytest.approx(20), "%")
    assert rows.loc["C5", "sft", "weights", "zo_selective − zo_all at σ=0.6"]["verdict"] == "supported"
    over = rows.loc["C5", "sft", "all", "overhead of zo_selective, by forward-equivalents"]
    assert (over["effect"], over["unit"], over["verdict"]) == (pytest.approx(12.5), "%", "supported")
    goal = rows.loc["O1", "sft", "weights"]
    assert goal.loc["zo_selective − fo_refine at σ=0.6", "verdict"] == "supported"
    assert goal.loc["zo_selective − zo_sign_shuffled at σ=0.6", "verdict"] == "supported"
    assert rows.loc["K1", "sft", "weights", "zo_sign_shuffled − aligned at σ=0.6"]["verdict"] == "supported"


def test_a_claim_as_a_whole_is_of_its_largest_p_and_holm_runs_over_claims(made):
    found = made["made"]["claims"].frame
    wholes = found[found["family"] == "as a whole"].set_index("claim")
    assert set(wholes.loc[["C1", "C2", "C3", "C4", "C5", "K1"], "verdict"]) == {"supported"}
    parts = found[(found["claim"] == "C2") & (found["recipe"] == "sft") & (found["family"] != "as a whole")]
    assert wholes.loc["C2", "p"] == parts["p"].max()
    silent = found["verdict"].str.startswith(("not asked", "not run", "not measurable"))
    assert found.loc[silent, "p"].isna().all()
    counted = found["p_holm"].notna()
    assert set(found.loc[counted, "claim"]) == {"C1", "C2", "C3", "C5"}  # the parts of C4 that were run have no p
    assert set(found.loc[counted, "family"]) == {"as a whole"}
    assert (found.loc[counted, "p_holm"] >= found.loc[counted, "p"]).all()
    short = found[found["recipe"] == "short"]
    assert set(short["claim"]) == {"C1", "C2"}
    assert "as a whole" not in set(short["family"])


def test_the_terminal_has_a_sentence_for_each_claim(made):
    text = terminal_claims(made["made"]["claims"].frame, made["at"])
    assert max(map(len, text.splitlines())) <= 100
    said = " ".join(text.split())
    assert "C1 alignment is fragile, tiny/sft: supported: weights +40.0 [" in said
    assert (
        "C2 zeroth-order refinement improves robustness, tiny/sft: supported: weights (zo_selective − aligned)" in said
    )
    assert "O1" not in text


def test_nothing_is_asked_where_the_reference_does_not_give_way(study):
    found = everything(configured(f"results={study.results}", "tables.headline_asr=0.9", "claims.margin=0.5"))
    frame = found["made"]["claims"].frame
    ran = frame[(frame["verdict"] != "not run") & (frame["family"].isin(["weights", "ternary"]))]
    assert set(ran.loc[ran["claim"].isin(["C1", "C2", "C5"]), "verdict"]) == {"not measurable"}
    assert frame.set_index(["claim", "family"]).loc[("C2", "as a whole"), "verdict"] == "not measurable"


def test_refinement_is_judged_only_where_alignment_is_fragile(study):
    frame = everything(configured(f"results={study.results}", "claims.margin=0.5"))["made"]["claims"].frame
    rows = frame[(frame["recipe"] == "sft") & (frame["family"] == "weights")].set_index("claim")
    assert rows.loc["C1", "verdict"] == "not supported"
    assert set(rows.loc[["C2", "C5"], "verdict"]) == {"not asked: no fragility"}


def test_what_hardly_moved_says_nothing_of_what_it_kept(study):
    frame = everything(configured(f"results={study.results}", "claims.moved=0.5"))["made"]["claims"].frame
    kept = frame[(frame["claim"] == "C3") & (frame["family"] != "all")]
    assert set(kept["verdict"]) == {"not asked: little moved"}


def interval(low: float, high: float) -> Difference:
    return replace(NOTHING, mean=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("rule", "supported", "refuted", "open_"),
    [
        (verdicts.fragile, (0.03, 0.2), (-0.1, 0.01), (0.01, 0.05)),
        (partial(verdicts.better, guards={}, costs={}), (-0.2, -0.01), (-0.01, 0.05), (-0.05, 0.01)),
        (verdicts.equivalent, (-0.01, 0.01), (0.03, 0.05), (-0.01, 0.03)),
        (verdicts.as_good, (-0.2, 0.01), (0.03, 0.05), (0.01, 0.03)),
    ],
)
def test_every_rule_reaches_every_verdict(rule, supported, refuted, open_):
    said = [rule(interval(*one), margin=0.02).verdict for one in (supported, refuted, open_)]
    assert said == ["supported", "not supported", "inconclusive"]


def test_a_lower_asr_is_no_better_where_it_costs_too_much():
    fall, costs = interval(-0.3, -0.1), {"over_refusal": 0.05, "utility": 0.05}
    dear = {"over_refusal": interval(0.06, 0.2), "utility": interval(0, 0)}
    unknown = {"over_refusal": interval(0.0, 0.08), "utility": interval(0, 0)}
    cheap = {"over_refusal": interval(-0.2, 0.01), "utility": interval(0, 0.04)}
    said = [verdicts.better(fall, 0.02, guards, costs).verdict for guards in (dear, unknown, cheap)]
    assert said == ["not supported", "inconclusive", "supported"]


def test_a_claim_holds_where_all_its_parts_do():
    s, n, i = verdicts.SUPPORTED, verdicts.NOT_SUPPORTED, verdicts.INCONCLUSIVE
    assert verdicts.together([s, s, verdicts.NOT_RUN], decided=True) == s
    assert verdicts.together([s, s], decided=False) == i  # after correction
    assert verdicts.together([s, n], decided=True) == n
    assert verdicts.together([s, i], decided=True) == i
    assert verdicts.together([verdicts.NOT_MEASURABLE, verdicts.NOT_RUN], decided=True) == verdicts.NOT_MEASURABLE


def test_rules_of_what_is_not_a_difference():
    assert [verdicts.above(interval(*e), 0.5) for e in ((0.6, 1), (-1, 0.4), (0.4, 0.6))] == [
        *("supported", "not supported", "inconclusive")
    ]
    assert [verdicts.within(interval(e, e), 13.3) for e in (13.0, 14.0)] == ["supported", "not supported"]


def test_ranks_by_hand():
    orders = np.array([[1.0, 2, 3, 4], [1, 2, 4, 3], [4, 3, 2, 1]])
    agree = spearman(orders[:, None], orders[None])
    assert agree[0].tolist() == pytest.approx([1, 0.8, -1])
    found = pairwise(agree, 0.95)
    assert found.mean == pytest.approx((0.8 - 1 - 0.8) / 3)
    assert -1 <= found.low < found.mean < found.high <= 1
    assert first(orders, 2).tolist() == [[2, 3], [2, 3], [0, 1]]
    assert [jaccard(orders[0], other, 2) for other in orders] == [1, 1, 0]
    assert jaccard(orders[0], np.array([0.0, 9, 1, 8]), 2) == pytest.approx(1 / 3)


def test_selection(study, made):
    evidence = Evidence.of(Layout.of(study), study)
    rises, online, outcomes = (evidence.frame(part) for part in ("sensitivity", "online", "outcomes"))
    found = profiles(rises[rises["model"] == "tiny/sft"], online[online["model"] == "tiny/sft"], study.probe, 40)
    assert found[PROBE].values[:, :4, 0].mean(0) == pytest.approx([0.8, 0.4, 0.2, 0.1], rel=1e-3)
    assert found[PROBE].groups[-1] == "head"
    assert found[ONLINE].values[0, :, 0] == pytest.approx([0.8, 0.4, 0.2, 0.1], rel=1e-3)
    assert found["2-bit rounding"].values[0, :, 0] == pytest.approx([0.8, 0.4, 0.2, 0.1], rel=1e-3)
    assert found["rise per parameter"].values[0, 0, 0] == pytest.approx(0.008, rel=1e-3)
    assert found["one-sided rise"].values[:, 0, 0].std() > 0.01
    agrees = agreement(found[PROBE], outcomes[outcomes["model"] == "tiny/sft"], 2, 0.95)
    for name in ("seeds", "halves", "radii", "overlap", "redrawn", "asr", "auroc"):
        assert getattr(agrees, name).mean == pytest.approx(1), name
    frame = made["made"]["selection"].frame
    assert set(frame["block"]) == {"sensitivity", "ranks", "selection"}
    chosen = frame[(frame["by"] == "zo_selective") & (frame["model"] == "tiny/sft")].set_index("quantity")
    assert chosen.loc["layers at each seed", "value"] == "0,1 · 0,1 · 0,1 · 0,1"
    assert chosen.loc["chosen again in redraws", "estimate"] == 0.75
    assert chosen.loc["weights σ=0.6", "estimate"] < 0.05


def test_cost_by_hand(made):
    frame = made["made"]["cost"].frame.set_index(["model", "method", "family"])
    paper = frame.loc["tiny/sft", "zo_selective", "weights"]
    assert paper[["steps", "forwards", "sequences", "selection"]].tolist() == [25, 200, 700, 300]
    assert paper["overhead"] == pytest.approx((700 + 300) / 8000)
    assert paper["within"]
    assert paper["difference"] == pytest.approx(-0.4)
    dear = frame.loc["tiny/sft", "fo_refine", "weights"]
    assert (dear["overhead"], dear["selection"], dear["within"]) == (0.2, 0, False)
    assert frame.loc["tiny/sft", "aligned", "weights"]["overhead"] == 0
    shown = made["made"]["cost"].shown.set_index(["model", "method"])
    assert shown.loc[("tiny/sft", "zo_selective"), "overhead (%)"] == "12.5 ✓"
    assert "★" in shown.loc[("tiny/sft", "zo_selective"), "weights"]
    assert r"$\surd$" in made["cost"]["tex"]


def test_tasks(made):
    frame = made["made"]["tasks"].frame.set_index(["task", "model", "method"])
    assert set(frame.index.get_level_values("task")) == {"mmlu/acc"}
    row = frame.loc["mmlu/acc", "tiny/sft", "zo_all"]
    assert row[["estimate", "difference", "seeds"]].tolist() == pytest.approx([0.615, 0.1, 4])
    assert row["difference_low"] == pytest.approx(row["difference_high"])  # seeds differ, pairs do not
    shown = made["made"]["tasks"].shown.set_index(["model", "method"])
    assert shown.loc[("tiny/sft", "aligned"), "Δ aligned"] == "–"


def test_predicted_rise(made):
    frame = made["made"]["optimizers"].frame
    rise = frame[frame["block"] == "rise"].set_index(["quantity", "sigma"])["estimate"]
    # S at σ = .1 sums to (.8 + .4 + .2 + .1) / 9, nine times that at .3; 2 was measured
    assert rise["predicted", 0.3] == pytest.approx(1.5, rel=2e-3)
    assert rise["measured / predicted", 0.3] == pytest.approx(2 / 1.5, rel=2e-3)
    compared = frame[frame["block"] == "optimizers"].set_index(["method", "quantity"])["estimate"]
    assert compared["aligned", "clean refusals (%)"] == 1
    assert compared["zo_all", "sequences"] == 8000 + 1600
