"""The metrics of a study on all resamples and what its captions count: computed once, then read by every table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting.products import ESTIMATES
from holdfast.settings.options import Config
from holdfast.statistics.coverage import matched_coverage, verdict_coverage
from holdfast.statistics.rates import Metrics, Point, by_point
from holdfast.statistics.resamples import Resamples


@dataclass(frozen=True)
class Measured:
    """`metrics` in single precision; `counts` and `clusters`: prompts and pairs of prompts by "split/label"; `ran`:
    what quantizers ran on; `coverage`: a sentence on simulated studies of this size."""

    metrics: Metrics
    counts: dict[str, int]
    clusters: dict[str, int]
    ran: dict[str, str]
    records: int
    unscored: int
    coverage: str

    @classmethod
    def of(cls, records: pd.DataFrame, cfg: Config, simulate: bool = True) -> Measured:
        resamples = Resamples(records, cfg.tables.resamples)
        one = records[["split", "label", "id"]].drop_duplicates()
        counts = (one["split"].astype(str) + "/" + one["label"].astype(str)).value_counts().sort_index()
        ran = records.loc[records["ran"] != "", ["perturbation", "ran"]].drop_duplicates().astype(str)
        return cls(
            by_point(records, resamples, cfg.tables.over_refusal),
            {str(part): int(count) for part, count in counts.items()},
            {"/".join(key): count for key, count in resamples.clusters.items()},
            {str(name): " and ".join(how) for name, how in ran.groupby("perturbation", sort=False)["ran"]},
            len(records),
            int((records["verdict"] == "unscored").sum()),
            simulated(cfg, counts["test/harmful"], counts["threshold/benign"]) if simulate else "",
        )

    def save(self, values: Path, index: Path) -> None:
        """Write an array, (points × seeds, metrics, 1 + resamples), and an index that says what it holds."""
        names = list(next(iter(self.metrics.values())))
        rows = [np.stack([found[name] for name in names], axis=1) for found in self.metrics.values()]
        with values.open("wb") as file:
            np.save(file, np.concatenate(rows), allow_pickle=False)
        points = [[*point, len(found)] for point, found in zip(self.metrics, rows, strict=True)]
        counted = {key: value for key, value in vars(self).items() if key != "metrics"}
        text = json.dumps({"points": points, "metrics": names, **counted}, indent=1)
        index.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Measured:
        index: dict[str, Any] = json.loads((folder / ESTIMATES[1]).read_text(encoding="utf-8"))
        values, names, start = np.load(folder / ESTIMATES[0], mmap_mode="r"), index.pop("metrics"), 0
        metrics: Metrics = {}
        for *point, seeds in index.pop("points"):
            mine = values[start : start + seeds]
            metrics[Point(*point)] = {name: mine[:, place] for place, name in enumerate(names)}
            start += seeds
        return cls(metrics, **index)


def simulated(cfg: Config, prompts: int, threshold_prompts: int) -> str:
    """One sentence on how often the interval contains the true value in simulated studies of this size."""
    tables, seeds = cfg.tables, len(cfg.study.seeds)
    at = tables.coverage
    verdicts, matched = {}, {}
    for rate, spread in product(at.rates, at.spreads):
        where = f"{rate:.0%}, spread {100 * spread:g}"
        verdicts[where] = verdict_coverage(at.studies, seeds, prompts, rate, spread, tables.confidence)
        matched[where] = matched_coverage(
            at.matched_studies, seeds, prompts, threshold_prompts, tables.over_refusal, rate, spread, tables.confidence
        )
    return (
        f"In simulated studies of this size with true rates {', '.join(f'{r:.0%}' for r in at.rates)} and seeds that "
        f"spread by {', '.join(f'{100 * s:g}' for s in at.spreads)} points the interval contained the true value in "
        f"{_range(verdicts)} for rates of verdicts ({at.studies} studies each) and in {_range(matched)} at matched "
        f"over-refusal ({at.matched_studies})."
    )


def _range(covered: dict[str, float]) -> str:
    least = min(covered, key=covered.__getitem__)
    return f"{100 * covered[least]:.0f}–{100 * max(covered.values()):.0f}% (least at {least})"
