"""The evidence and the tuning that came before it: what they share, and what they must not."""

from __future__ import annotations

import pandas as pd
import pytest
from conftest import save_aligned

from holdfast.datasets import world
from holdfast.datasets.sampling import capped
from holdfast.settings.compose import composed
from holdfast.settings.paths import Layout, runs

EVALUATED = ("test", "threshold")


@pytest.fixture(scope="module")
def studies():
    return {name: composed([f"study={name}"]) for name in ("evidence", "tuning", "tiny")}


@pytest.fixture(scope="module")
def rows(studies):
    cfg = studies["evidence"]
    return pd.DataFrame(world.build(cfg.data.model_dump(), cfg.openings.model_dump()))


def test_tuning_and_evidence_are_one_world_with_other_seeds(studies):
    evidence, tuning = studies["evidence"], studies["tuning"]
    assert evidence.data == tuning.data != studies["tiny"].data
    used = [{cfg.seed, *cfg.study.seeds} for cfg in studies.values()]  # cfg.seed: of the base model
    assert not used[0] & used[1]
    assert not set(studies["tiny"].study.seeds) & (used[0] | used[1])


def test_splits_share_neither_ids_nor_prompts_nor_pairs(rows):
    splits = {split: found for split, found in rows.groupby("split") if split != "pretrain"}
    assert {"train", "tune", *EVALUATED} == set(splits)
    for first in splits:
        for second in set(splits) - {first}:
            for column in ("id", "prompt", "pair"):
                assert not set(splits[first][column]) & set(splits[second][column])
    assert not set(rows[rows["split"] == "pretrain"]["prompt"]) & set(splits["test"]["prompt"])


def test_the_evidence_is_large_enough(studies, rows):
    cfg = studies["evidence"]
    assert len(cfg.study.seeds) >= 5
    harmful = rows[(rows["split"] == "test") & (rows["label"] == "harmful")]
    harmful = capped(harmful, cfg.evaluate.prompts["test/harmful"], cfg.evaluate.seed)
    assert harmful["pair"].nunique() >= 90
    for at in cfg.claims.families.values():
        perturbation = cfg.perturb[at.perturbation]
        assert min(map(perturbation.draws_at, perturbation.levels)) >= 8


def test_the_evidence_has_every_method_and_both_recipes(studies):
    study, claims = studies["evidence"].study, studies["evidence"].claims
    found = {recipe: {m for _, r, m, _ in runs(study) if r == recipe} for _, recipe, _, _ in runs(study)}
    judged = found[claims.judged[0]]
    assert {"aligned", "threshold_shift", "zo_bottom_layers", *claims.methods.first_orders} <= judged
    for recipe in claims.judged:
        core = {"aligned", claims.methods.paper, claims.methods.all, claims.methods.random, claims.methods.shuffled}
        assert core <= found[recipe]
        assert {seed for _, its, _, seed in runs(study) if its == recipe} == set(study.seeds)
    assert found.keys() >= {*claims.lengths, *claims.optimizers}


def test_tuning_needs_no_row_of_an_evaluation_split(studies, rows, tokenizer, tmp_path, stage):
    """It runs, and scores, where those rows do not exist."""
    layout = Layout(str(tmp_path), "tuning")
    layout.data.mkdir(parents=True)
    kept = rows[~rows["split"].isin(EVALUATED)]
    few = kept.groupby(["split", "label"]).head(20)
    few.to_parquet(layout.data / "prompts.parquet")
    (layout.data / "metrics.json").write_text("{}")
    folder = layout.align("tiny", "sft_plateau", 100)
    save_aligned(folder, tokenizer)
    save_aligned(layout.pretrain("tiny"), tokenizer)  # the referee's
    ended = stage(
        *("tune", "study=tuning", "align=sft_plateau", "method=fo_smoothed", "seed=100", f"results={tmp_path}"),
        *("refine.steps=1", "refine.queries=2", "perturb.rtn.draws=1", f"hydra.run.dir={tmp_path}/out"),
    )
    assert ended.returncode == 0, ended.stderr
    scores = pd.read_parquet(tmp_path / "out/scores.parquet")
    assert set(scores["perturbation"]) == {"none", "weight_noise", "activation_noise", "rtn"}
    assert scores[["asr", "over_refusal", "broken_benign", "utility"]].notna().all(axis=None)
    assert not (tmp_path / "out/model").exists()
