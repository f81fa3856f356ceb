"""T4: how sensitive each layer is, how stable their order is, and what selecting by it does."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting.estimates import estimate, judged_points, sampled
from holdfast.reporting.render import Table, number, percent
from holdfast.reporting.sensitivity import Agreement, Profile, agreement, mean_rise, profiles, redrawn
from holdfast.reporting.setting import Setting
from holdfast.settings.options import Config
from holdfast.statistics.intervals import Estimate, student
from holdfast.statistics.ranks import pairwise
from holdfast.statistics.rates import Metrics

RANKS = {  # field of Agreement -> how its column reads
    "seeds": "ρ between seeds",
    "halves": "ρ between halves",
    "radii": "ρ between σ",
    "overlap": "top-{k} overlap between seeds",
    "redrawn": "same top-{k} in redraws",
    "asr": "ρ with miss rate",
    "auroc": "ρ with fall of AUROC",
}
CAPTION = (
    "Layer selection. Above: S of each group, the mean rise of the loss when it alone is perturbed (σ = {sigma:g} of "
    "the rms of its weights; abs(L₊−L₋)/2σ measures the gradient, not robustness); [ ] is the {confidence:.0%} t "
    "interval over seeds, or of examples and draws redrawn where there is one seed. Middle: Spearman's ρ of the "
    "decoder layers' order between pairs of seeds, between random halves of the examples (of the evaluations, "
    "online) and between radii; overlap (Jaccard) of the {k} most sensitive layers between seeds; share of {redraws} "
    "redraws of examples and draws with the same {k}; ρ within a seed with the detector's miss rate, and with "
    "the fall of AUROC, on the tuning split when noise hits one layer alone. Between seeds the interval is the "
    "jackknife's. Below: the layers that each method refined at each seed, and the ASR where claims are judged. "
)
ESTIMATE = ("estimate", "low", "high")


def selection(metrics: Metrics, setting: Setting, frames: dict[str, pd.DataFrame], cfg: Config) -> Table:
    """T4; `frames` holds sensitivity, online, outcomes and costs."""
    rows: list[dict[str, Any]] = []
    blocks: tuple[list[dict[str, Any]], ...] = ([], [], [])
    for model in frames["sensitivity"]["model"].unique():
        parts = {name: frames[name][frames[name]["model"] == model] for name in ("sensitivity", "online", "outcomes")}
        found = profiles(parts["sensitivity"], parts["online"], cfg.probe, setting.resamples)
        for measure, profile in found.items():
            head = {"model": model, "by": measure}
            agrees = agreement(profile, parts["outcomes"], cfg.claims.top_k, setting.confidence)
            rows += [{"block": "sensitivity", **head, **row} for row in _sensitivity(profile, setting.confidence)]
            rows += [{"block": "ranks", **head, **row} for row in _ranks(agrees)]
            blocks[0].append(head | _cells(profile, setting.confidence))
            named = {RANKS[f.name].format(k=cfg.claims.top_k): getattr(agrees, f.name) for f in fields(agrees)}
            blocks[1].append(head | {name: number(e) for name, e in named.items()})
    for head, effects in _effects(metrics, setting, frames["costs"], cfg):
        rows += [{"block": "selection", **head, **row} for row in effects]
        blocks[2].append(head | {row["quantity"]: row.get("value") or row["cell"] for row in effects})
    frame = pd.DataFrame(rows, columns=["block", "model", "by", "quantity", "group", "seed", *ESTIMATE, "value"])
    caption = CAPTION.format(
        sigma=cfg.probe.sigma, confidence=setting.confidence, k=cfg.claims.top_k, redraws=setting.resamples
    )
    shown, *more = (pd.DataFrame(block).fillna("") for block in blocks)
    return Table(frame, shown, caption + setting.caption(), "tab:selection", tuple(more))


def _numbers(e: Estimate) -> dict[str, float]:
    return {"estimate": e.mean, "low": e.low, "high": e.high}


def _sensitivity(profile: Profile, confidence: float) -> list[dict[str, Any]]:
    """S of each group, over seeds and of each seed."""
    rows = []
    for place, group in enumerate(profile.groups):
        rows.append({"quantity": "S", "group": group, **_numbers(mean_rise(profile, place, confidence))})
        for seed, values in zip(profile.seeds, profile.values[:, place], strict=True):
            rows.append({"quantity": "S", "group": group, "seed": seed, **_numbers(redrawn(values, confidence))})
    return rows


def _ranks(agrees: Agreement) -> list[dict[str, Any]]:
    return [{"quantity": f.name, **_numbers(getattr(agrees, f.name))} for f in fields(agrees)]


def _cells(profile: Profile, confidence: float) -> dict[str, str]:
    form = ".2e" if np.abs(profile.values[..., 0]).max() < 0.001 else ".3f"
    return {group: number(mean_rise(profile, place, confidence), form) for place, group in enumerate(profile.groups)}


def _effects(
    metrics: Metrics, setting: Setting, costs: pd.DataFrame, cfg: Config
) -> list[tuple[dict[str, str], list[dict[str, Any]]]]:
    """Of each method that selects layers, and of those that it is held against: the layers of each seed, how stable
    they are, and what they do."""
    refined = costs[costs["stage"] == "refine"]
    roles = cfg.claims.methods
    told = {roles.paper, roles.online, roles.random, roles.all} | set(
        refined.loc[refined["stability"].notna(), "method"]
    )
    made = []
    for (model, method), runs in refined.groupby(["model", "method"], sort=False, observed=True):
        if method not in told:
            continue
        sets = [set(layers.split()) for layers in runs["layers"]]
        overlap = np.array([[len(a & b) / max(len(a | b), 1) for b in sets] for a in sets])
        names = " · ".join(layers.replace("layer.", "").replace(" ", ",") for layers in runs["layers"])
        again = student(runs["stability"].to_numpy(dtype=float), setting.confidence, (0.0, 1.0))
        between = pairwise(overlap, setting.confidence)
        rows: list[dict[str, Any]] = [
            {"quantity": "layers at each seed", "value": names},
            {"quantity": "chosen again in redraws", "cell": number(again), **_numbers(again)},
            {"quantity": "overlap between seeds", "cell": number(between), **_numbers(between)},
        ]
        for family, one in judged_points(metrics, setting, str(model)).items():
            if one is not None:
                e = estimate(sampled(metrics, str(model), str(method), one.at, "asr"), "asr", setting)
                rows.append({"quantity": setting.titled(family, one.at), "cell": percent(e), **_numbers(e)})
        made.append(({"model": str(model), "by": str(method)}, rows))
    return made
