"""What a sweep found: a row for each setting, and no two settings in one row."""

from __future__ import annotations

import pandas as pd
import pytest

from holdfast.commands.tune import main
from holdfast.errors import UserError
from holdfast.runtime.origin import Origin
from holdfast.settings.compose import composed


def job(folder, asr: float, *overrides: str) -> None:
    """What one trial of the sweep leaves."""
    cfg = composed([*overrides, "tracking=disabled"])
    folder.mkdir(parents=True)
    Origin.of(cfg, [*overrides]).write(folder)
    scores = {"asr": asr, "over_refusal": 0.1, "broken_benign": 0.0, "utility": 0.9}
    at = [{"perturbation": name, **scores, "seed": cfg.seed} for name in ("none", "rtn")]
    pd.DataFrame(at).to_parquet(folder / "scores.parquet")


@pytest.mark.parametrize(
    "varied",
    ["refine.normalize=none", "refine.noise=gaussian", "method.select.k=2", "refine.mu=0.1", "align=sft_160"],
)
def test_trials_of_different_settings_are_not_averaged(tmp_path, varied):
    for place, (asr, more) in enumerate([(0.2, []), (0.4, ["seed=1"]), (0.9, [varied])]):
        job(tmp_path / "sweep" / str(place), asr, "method=zo_selective", *more)
    told = main([f"sweep={tmp_path / 'sweep'}", f"out={tmp_path / 'out' / 'tuning.csv'}"])
    table = pd.read_csv(tmp_path / "out/tuning.csv")
    assert table["mean asr"].tolist() == pytest.approx([0.3, 0.9])
    assert table["seeds"].tolist() == [2, 1]
    assert varied.partition("=")[0].split(".")[-1] in told


def test_a_folder_without_trials_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no scores\.parquet below it"):
        main([f"sweep={tmp_path}", "out=x.csv"])
