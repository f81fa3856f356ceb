"""Which layers a probe chooses, and whether it would choose them again."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from holdfast.zo import online_sensitivity

REDRAWS = 500


def rises(found: pd.DataFrame, layers: list[str]) -> np.ndarray:
    """(draws, examples, layers) rises of one seed at one σ, one layer perturbed at a time; a perturbation without
    signs (a quantizer) has its rise on its one side."""
    rise = ((found["up"] + found["down"]) / 2).where(found["down"].notna(), found["up"]) - found["clean"]
    return completed(found.assign(rise=rise), layers, ["rise"])[0].transpose(1, 2, 0)


def completed(found: pd.DataFrame, groups: list[str], columns: list[str]) -> list[np.ndarray]:
    """(groups, draws, examples) of each column. A group that was drawn less than others, because it surely is none of
    those wanted, has the mean of its own draws in the place of the others."""
    axes = [groups, sorted(found["draw"].unique()), sorted(found["example"].unique())]
    index = pd.MultiIndex.from_product(axes, names=["group", "draw", "example"])
    whole = found.astype({"group": str}).set_index(index.names)[columns].astype(float).reindex(index)
    if whole.isna().any(axis=None):
        whole = whole.fillna(whole.groupby(level=["group", "example"]).transform("mean"))
    return [whole[column].to_numpy().reshape([len(axis) for axis in axes]) for column in columns]


def scores(found: pd.DataFrame, layers: list[str], redraws: int = 0) -> np.ndarray:
    """(1 + redraws, layers) sensitivities of one seed: as measured, then with draws and examples, or the evaluations
    of an online probe, redrawn with replacement."""
    rng = np.random.default_rng(0)
    if "perturbed" in found:
        wide = found.pivot(index="evaluation", columns="group", values="perturbed")[layers]
        masks = torch.from_numpy(wide.to_numpy(dtype=bool))
        rise = torch.tensor(found.groupby("evaluation")["rise"].first().to_numpy())  # pandas' own is not writable
        drawn = [np.arange(len(rise)), *rng.integers(0, len(rise), (redraws, len(rise)))]
        return np.stack([online_sensitivity(rise[rows], masks[rows]).numpy() for rows in drawn])
    by_draw = rises(found, layers)
    draws, examples, _ = by_draw.shape
    again = [
        by_draw[rng.integers(0, draws, draws)][:, rng.integers(0, examples, examples)].mean((0, 1))
        for _ in range(redraws)
    ]
    return np.stack([by_draw.mean((0, 1)), *again])


def ranked(found: pd.DataFrame, layers: list[str], most: bool = True) -> list[str]:
    """The layers, the most sensitive first, or the least."""
    order = np.argsort(scores(chosen_by(found), layers)[0], kind="stable")
    return [layers[place] for place in (order[::-1] if most else order)]


def stability(found: pd.DataFrame, layers: list[str], k: int, most: bool = True) -> float:
    """Share of redraws that choose the same `k` layers."""
    all_scores = scores(chosen_by(found), layers, REDRAWS) * (1 if most else -1)
    sets = [frozenset(np.argsort(row, kind="stable")[::-1][:k].tolist()) for row in all_scores]
    return float(np.mean([again == sets[0] for again in sets[1:]]))


def chosen_by(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of a probe that layers are selected by: noise on weights, at the radius that comes first."""
    if "perturbed" in found:
        return found
    weights = found[found["kind"] == "weights"]
    return weights[weights["sigma"] == weights["sigma"].iloc[0]]
