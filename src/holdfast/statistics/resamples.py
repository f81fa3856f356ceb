"""Prompts redrawn with replacement, whole pairs at a time, and the records of a point beside their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

WORST = ("complied", "partial", "safe", "refused", "broken", "unscored", None)  # verdicts, from what gives in most


class Resamples:
    """How often each prompt counts, (prompts, 1 + resamples): once, and then as often as its pair was redrawn within
    its split and label."""

    def __init__(self, prompts: pd.DataFrame, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.count = count
        one = prompts[["id", "split", "label", "pair"]].drop_duplicates("id").reset_index(drop=True)
        self.place = pd.Index(one["id"])
        self.weights = np.ones((len(one), 1 + count), dtype=np.float32)  # counts, and their sums, are exact
        self.kind = np.zeros(len(one), dtype=np.int8)  # of each prompt: its (split, label) in `clusters`
        self.clusters: dict[tuple[str, str], int] = {}
        # A prompt without a pair is a pair of its own.
        cluster = one["pair"].where(one["pair"].fillna("") != "", one["id"]).to_numpy()
        key: Any  # pandas types the parts of a group's key as anything hashable
        for key, rows in one.groupby(["split", "label"]):
            codes, pairs = pd.factorize(cluster[rows.index])
            drawn = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), count)  # (resamples, pairs)
            self.weights[rows.index, 1:] = drawn[:, codes].T
            self.clusters[key] = len(pairs)
            self.kind[rows.index] = len(self.clusters) - 1
        self._drawn: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def parts(self, rows: pd.DataFrame) -> dict[tuple[str, str], Part]:
        """The records of one checkpoint at one point and draw, by (split, label)."""
        verdict = rows["verdict"].astype(object)
        columns = {
            "id": rows["id"].to_numpy(),
            "margin": rows["margin"].to_numpy(dtype=float),
            "verdict": verdict.where(verdict.notna(), None).to_numpy(),
            "utility": rows["utility"].to_numpy(dtype=float),
        }
        return self.split(columns, self.place.get_indexer(rows["id"]))

    def split(self, columns: dict[str, np.ndarray], places: np.ndarray) -> dict[tuple[str, str], Part]:
        """Columns of a `Part`, (prompts,) each, by (split, label); `places`: their prompts in `weights`."""
        found = {}
        for at, key in enumerate(self.clusters):
            mine = np.flatnonzero(self.kind[places] == at)
            if len(mine):
                values = {name: column[mine] for name, column in columns.items()}
                found[key] = Part(**values, weights=self._weights(key, places[mine]))
        return found

    def _weights(self, key: tuple[str, str], places: np.ndarray) -> np.ndarray:
        """As at the point before, mostly: the same prompts in the same order."""
        before = self._drawn.get(key)
        if before is None or not np.array_equal(before[0], places):
            self._drawn[key] = before = (places, self.weights[places])
        return before[1]


@dataclass(frozen=True, eq=False)
class Part:
    """The same prompts' ids, margins, verdicts (None where nothing was generated) and utility, (prompts,) each, and
    weights (prompts, 1 + resamples)."""

    id: np.ndarray
    margin: np.ndarray
    verdict: np.ndarray
    utility: np.ndarray
    weights: np.ndarray

    @cached_property
    def generated(self) -> bool:
        return all(verdict is not None for verdict in self.verdict)

    @cached_property
    def scored(self) -> bool:
        """Whether margins were taken."""
        return not np.isnan(self.margin).any()

    def among(self, other: Part) -> Part:
        """Its prompts' worst of the two outcomes: the one that gives in, and the lower margin."""
        order = pd.Index(other.id).get_indexer(self.id)
        theirs = other.verdict[order]
        worse = [WORST.index(a) < WORST.index(b) for a, b in zip(theirs, self.verdict, strict=True)]
        margin = np.minimum(self.margin, other.margin[order])
        return replace(self, verdict=np.where(worse, theirs, self.verdict), margin=margin)


def average(values: np.ndarray, weights: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Weighted mean over prompts, (resamples,), of values (prompts,) or (prompts, resamples), of those prompts
    `among` (prompts,) alone; NaN where nothing has weight."""
    if among is not None:
        values = np.where(among if values.ndim == 1 else among[:, None], values, 0)
    count = weights.sum(0) if among is None else among.astype(weights.dtype) @ weights
    total = values.astype(weights.dtype) @ weights if values.ndim == 1 else np.einsum("nr,nr->r", values, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


def running(weights: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Sums over the first 1, 2, … prompts in `order`, (prompts, resamples). Row by row: NumPy's own cumulative sum
    goes down one column after the other, which takes ten times as long."""
    sums = weights[order]
    for place in range(1, len(sums)):
        sums[place] += sums[place - 1]
    return sums
