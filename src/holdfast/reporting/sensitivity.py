"""How sensitive each layer is by every measure, and how far the orders that they give agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from holdfast.probing.options import ProbeOptions
from holdfast.probing.selection import completed
from holdfast.statistics.intervals import Estimate, student
from holdfast.statistics.ranks import first, jaccard, pairwise, spearman

PROBE, ONLINE = "antithetic rise (probe)", "online"
RHO = (-1.0, 1.0)
Reduce = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Profile:
    """A measure of one model's groups. `values` (seeds, groups, 1 + redraws), as measured and with examples and draws
    redrawn; `halves` (seeds, 2, groups), of a random half of the examples each; `sigmas` (seeds, radii, layers)."""

    groups: list[str]
    seeds: list[int]
    values: np.ndarray
    halves: np.ndarray
    sigmas: np.ndarray

    @property
    def layers(self) -> list[int]:
        """The places of the decoder layers, which alone are ranked."""
        return [place for place, group in enumerate(self.groups) if group.startswith("layer.")]


@dataclass(frozen=True)
class Agreement:
    """Of the layers' order: mean rank correlation between seeds, halves of the examples, and radii; mean overlap of
    the first k between seeds, and share of redraws with the same first k; rank correlation with the ASR, and with the
    fall of AUROC, that noise on one layer alone leads to."""

    seeds: Estimate
    halves: Estimate
    radii: Estimate
    overlap: Estimate
    redrawn: Estimate
    asr: Estimate
    auroc: Estimate


def profiles(rises: pd.DataFrame, online: pd.DataFrame, probe: ProbeOptions, redraws: int) -> dict[str, Profile]:
    """Every measure that there is for one model, by name."""
    single = rises[rises["group"] != "all"]
    parameters = single.groupby("group", observed=True)["parameters"].first()

    def tilted(rise: np.ndarray, tilt: np.ndarray, draws: np.ndarray, examples: np.ndarray) -> np.ndarray:
        return np.einsum("gdr,rd->gr", np.abs(np.einsum("gde,re->gdr", tilt, examples)), draws) / probe.sigma

    measures: dict[str, tuple[str, float, Reduce]] = {
        PROBE: ("weights", probe.sigma, lambda rise, tilt, d, e: _mean(rise, d, e)),
        "one-sided rise": ("weights", probe.sigma, lambda rise, tilt, d, e: _mean(rise + tilt, d, e)),
        "abs(L₊−L₋)/2σ": ("weights", probe.sigma, tilted),
        "activation noise": ("activations", probe.activation_sigma, lambda rise, tilt, d, e: _mean(rise, d, e)),
        f"{probe.bits:g}-bit rounding": ("quantization", probe.bits, lambda rise, tilt, d, e: _mean(rise, d, e)),
    }
    found = {}
    for name, (kind, sigma, reduce) in measures.items():
        mine = single[single["kind"] == kind]
        if (mine["sigma"] == sigma).any():
            found[name] = _profile(mine, sigma, reduce, redraws)
    if PROBE in found:
        base = found[PROBE]
        sizes = parameters[base.groups].to_numpy(dtype=float)
        found["rise per parameter"] = Profile(
            base.groups,
            base.seeds,
            base.values / sizes[:, None],
            base.halves / sizes,
            base.sigmas / sizes[base.layers],
        )
    regressed = _online(online, redraws)
    return found | ({ONLINE: regressed} if regressed else {})


def agreement(profile: Profile, outcomes: pd.DataFrame, k: int, confidence: float) -> Agreement:
    """How far orders agree; `outcomes` of the same model, without rows where none were taken."""
    values = profile.values[:, profile.layers]  # (seeds, layers, 1 + redraws)
    measured = values[..., 0]
    tops = first(values.swapaxes(1, 2), k)  # (seeds, 1 + redraws, k)
    same = (tops[:, 1:] == tops[:, :1]).all(-1).mean(1)
    radii = profile.sigmas.swapaxes(0, 1)
    pairs = [spearman(one, other) for one, other in combinations(radii, 2)]
    halves = profile.halves[..., profile.layers]
    by_seed = outcomes.groupby(["seed", "group"], observed=True)[["asr", "auroc"]].mean()
    layers = [profile.groups[place] for place in profile.layers]
    places = pd.MultiIndex.from_product([profile.seeds, layers])
    asr, auroc = (by_seed[name].reindex(places).to_numpy(dtype=float).reshape(measured.shape) for name in by_seed)
    return Agreement(
        pairwise(spearman(measured[:, None], measured[None]), confidence),
        student(spearman(halves[:, 0], halves[:, 1]), confidence, RHO),
        student(np.mean(pairs, axis=0) if pairs else np.empty(0), confidence, RHO),
        pairwise(np.array([[jaccard(a, b, k) for b in measured] for a in measured]), confidence),
        student(same, confidence, (0.0, 1.0)),
        student(_followed(measured, asr), confidence, RHO),
        student(_followed(measured, -auroc), confidence, RHO),
    )


def mean_rise(profile: Profile, place: int, confidence: float) -> Estimate:
    """S of a group: Student's interval over seeds; of one seed, that of examples and draws redrawn."""
    values = profile.values[:, place]
    if len(values) > 1:
        return student(values[:, 0], confidence)
    return redrawn(values[0], confidence)


def redrawn(values: np.ndarray, confidence: float) -> Estimate:
    """Percentile interval of (1 + redraws,)."""
    low, high = np.quantile(values[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(values[0]), float(low), float(high))


def _followed(measured: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Rank correlation of (seeds, layers) within each seed that has outcomes."""
    known = np.isfinite(outcome).all(1)
    return spearman(measured[known], outcome[known])


def _mean(rise: np.ndarray, draws: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """(groups, redraws) means of (groups, draws, examples) under weights (redraws, draws) and (redraws, examples)."""
    return np.einsum("gdr,rd->gr", np.einsum("gde,re->gdr", rise, examples, optimize=True), draws)


def _weights(rng: np.random.Generator, count: int, redraws: int) -> np.ndarray:
    """(3 + redraws, count) weights: all alike, either half, then redrawn with replacement."""
    half = np.zeros(count)
    half[rng.permutation(count)[: count // 2]] = 1
    rows = [np.ones(count), half, 1 - half] if count > 1 else [np.ones(count)] * 3
    weights = np.vstack([*rows, rng.multinomial(count, np.full(count, 1 / count), redraws)])
    return weights / weights.sum(1, keepdims=True)


def _profile(rises: pd.DataFrame, sigma: float, reduce: Reduce, redraws: int) -> Profile:
    groups = rises.loc[rises["sigma"] == sigma, "group"].unique().tolist()
    layers = [group for group in groups if group.startswith("layer.")]
    own, seeds, radii = [], sorted(rises["seed"].unique().tolist()), sorted(rises["sigma"].unique())
    at_radii = []
    for seed in seeds:
        mine = rises[rises["seed"] == seed]
        rise, tilt = _cube(mine[mine["sigma"] == sigma], groups)
        rng = np.random.default_rng(seed)
        examples = _weights(rng, rise.shape[2], redraws)
        draws = _weights(rng, rise.shape[1], redraws)
        draws[1:3] = draws[0]
        own.append(reduce(rise, tilt, draws, examples))
        cubes = [_cube(mine[mine["sigma"] == radius], layers) for radius in radii]
        alike = [[np.full((1, n), 1 / n) for n in cube.shape[1:]] for cube, _ in cubes]
        at_radii.append([reduce(*cube, *even)[:, 0] for cube, even in zip(cubes, alike, strict=True)])
    values = np.stack(own)  # (seeds, groups, 3 + redraws)
    return Profile(groups, seeds, np.delete(values, [1, 2], -1), values[..., 1:3].swapaxes(1, 2), np.array(at_radii))


def _cube(rises: pd.DataFrame, groups: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rise and tilt of these groups, (groups, draws, examples) each."""
    rise, tilt = completed(rises, groups, ["rise", "tilt"])
    return rise, tilt


def _online(online: pd.DataFrame, redraws: int) -> Profile | None:
    """The regression of rises on masks; None where there are not enough evaluations in every half."""
    groups = list(online["group"].unique())
    seeds = sorted(online["seed"].unique().tolist())
    values, halves = [], []
    for seed in seeds:
        mine = online[online["seed"] == seed]
        wide = mine.pivot(index="evaluation", columns="group", values="perturbed")[groups]
        masks = wide.to_numpy(dtype=bool)
        rise = mine.groupby("evaluation")["rise"].first().to_numpy(dtype=float)
        if len(rise) // 2 <= len(groups):
            return None
        rng = np.random.default_rng(seed)
        mixed = rng.permutation(len(rise))
        drawn = [np.arange(len(rise)), *rng.integers(0, len(rise), (redraws, len(rise)))]
        values.append(np.stack([_regressed(rise[rows], masks[rows]) for rows in drawn], axis=1))
        halves.append([_regressed(rise[rows], masks[rows]) for rows in np.array_split(mixed, 2)])
    if not seeds:
        return None
    stacked = np.stack(values)
    return Profile(groups, seeds, stacked, np.array(halves), stacked[:, None, :, 0])


def _regressed(rise: np.ndarray, masks: np.ndarray) -> np.ndarray:
    import torch

    from holdfast.zo import online_sensitivity

    return online_sensitivity(torch.from_numpy(rise), torch.from_numpy(masks)).numpy()
