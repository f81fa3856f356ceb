"""The probe stage on a random model: every measurement that is asked for, and what it cost."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from conftest import save_aligned, save_prompts

from holdfast.errors import UserError
from holdfast.settings.compose import composed
from holdfast.settings.paths import Layout


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of results with data."""
    layout = Layout(str(tmp_path_factory.mktemp("results")), "made")
    save_prompts(layout, 12)
    return layout


def test_the_probe_measures_what_is_asked_for(base, stage, tokenizer):
    folder, out = base.align("tiny", "sft", 0), base.probe("tiny", "sft", 0)
    save_aligned(folder, tokenizer)
    ended = stage(
        *("probe", f"results={base.results}", f"hydra.run.dir={out}", "tracking=disabled", "study.name=made"),
        *("probe.compare=[together,activations,quantization]", "probe.other_sigmas=[0.1]", "probe.outcome_draws=1"),
        *("probe.draws=2", "probe.prompts=8", "probe.batch_size=4", "probe.online.steps=2"),
    )
    assert ended.returncode == 0, ended.stderr
    found = pd.read_parquet(out / "sensitivity.parquet")
    groups = found[found["kind"] == "weights"].groupby("sigma", sort=False)["group"].unique()
    assert list(groups.index) == [0.6, 0.1]  # what is selected by comes first
    assert set(groups[0.6]) == {"embeddings", "head", "layer.0", "layer.1", "all"}
    assert found.loc[found["kind"] == "quantization", "down"].isna().all()
    assert found.loc[found["kind"] != "quantization", "down"].notna().all()
    # One batch, one loss: whatever is perturbed, the clean side is the same.
    clean = found.groupby(["draw", "example"])["clean"]
    assert (clean.max() - clean.min()).max() < 1e-5
    online = pd.read_parquet(out / "online.parquet")
    assert online["evaluation"].nunique() == 2 * composed([]).refine.queries
    assert online.groupby("evaluation")["perturbed"].any().all()
    outcomes = pd.read_parquet(out / "outcomes.parquet")
    assert outcomes["group"].tolist() == ["layer.0", "layer.1"]
    assert outcomes[["asr", "auroc"]].stack().between(0, 1).all()
    sequences = json.loads((out / "metrics.json").read_text())["sequences"]
    # Two batches of four, two sequences each: the clean pass; ±, two draws, of embeddings and of 1 + ½ of the layers.
    assert sequences["probe"] == 2 * 4 * 2 * (1 + 2 * 2 * (1 + 1 + 0.5))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["method=zo_all", "method.alpha=1"], "method.alpha: kind=zeroth_order does not read it"),
        (["method=zo_sign_shuffled", "method.of=null"], "method.of: no value is given"),
        (["probe.other_sigmas=[0.6]"], "0.6 is probe.sigma already"),
    ],
)
def test_an_option_of_another_kind_is_refused(overrides, told):
    with pytest.raises(UserError, match=told):
        composed(overrides)
