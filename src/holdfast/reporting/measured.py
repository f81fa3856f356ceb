"""The metrics of a study on all resamples and what its captions count: computed once, then read by every table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from holdfast.reporting.product import ESTIMATES
from holdfast.settings.options import Config
from holdfast.statistics.coverage import Size, coverage
from holdfast.statistics.rates import METRICS, Metrics, Point, Sampled, by_point
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
            by_point(records, resamples, cfg.tables.false_alarms, [n for n, p in cfg.perturb.items() if p.worst]),
            {str(part): int(count) for part, count in counts.items()},
            {"/".join(key): count for key, count in resamples.clusters.items()},
            {str(name): " and ".join(how) for name, how in ran.groupby("perturbation", sort=False)["ran"]},
            len(records),
            int((records["verdict"] == "unscored").sum()),
            simulated(cfg, int(counts["test/harmful"])) if simulate else "",
        )

    def save(self, values: Path, index: Path) -> None:
        """Write an array, (points × seeds, metrics, 1 + draws + resamples), and an index that says what it holds; a
        point with fewer draws than others has NaN in their place."""
        names = list(METRICS)
        most = max(one.draws.shape[1] for found in self.metrics.values() for one in found.values())
        rows = [np.stack([_flat(found[name], most) for name in names], axis=1) for found in self.metrics.values()]
        with values.open("wb") as file:
            np.save(file, np.concatenate(rows), allow_pickle=False)
        drawn = [[found[name].draws.shape[1] for name in names] for found in self.metrics.values()]
        points = [[*p, len(found), each] for p, found, each in zip(self.metrics, rows, drawn, strict=True)]
        counted = {key: value for key, value in vars(self).items() if key != "metrics"}
        text = json.dumps({"points": points, "metrics": names, "draws": most, **counted})
        index.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Measured:
        index: dict[str, Any] = json.loads((folder / ESTIMATES[1]).read_text(encoding="utf-8"))
        values, names, most = np.load(folder / ESTIMATES[0], mmap_mode="r"), index.pop("metrics"), index.pop("draws")
        metrics: Metrics = {}
        start = 0
        for *point, seeds, drawn in index.pop("points"):
            mine = values[start : start + seeds]
            metrics[Point(*point)] = {
                name: Sampled(
                    mine[:, k, 0].astype(float), mine[:, k, 1 : 1 + drawn[k]].astype(float), mine[:, k, 1 + most :]
                )
                for k, name in enumerate(names)
            }
            start += seeds
        return cls(metrics, **index)


def _flat(one: Sampled, most: int) -> np.ndarray:
    """(seeds, 1 + `most` + resamples) in single precision."""
    draws = np.pad(one.draws, ((0, 0), (0, most - one.draws.shape[1])), constant_values=np.nan)
    return np.concatenate([one.value[:, None], draws, one.redrawn], axis=1, dtype=np.float32, casting="same_kind")


def simulated(cfg: Config, prompts: int) -> str:
    """One sentence on how often the intervals contain the true value in simulated studies of this size."""
    tables, at = cfg.tables, cfg.tables.coverage
    draws = max(p.most_draws for p in cfg.perturb.values()) if cfg.perturb else 1
    size = Size(len(cfg.study.seeds), draws, prompts)
    found = {
        f"{rate:.1%}, seeds {between:g}, draws {within:g}": coverage(
            at.studies, size, rate, between, within, tables.confidence
        )
        for rate, between, within in product(at.rates, at.seeds, at.draws)
    }
    return (
        f"In simulated studies of this size, with {draws} draws, true rates of "
        f"{', '.join(f'{r:.1%}' for r in at.rates)}, seeds that hold {', '.join(f'{s:.0%}' for s in at.seeds)} and "
        f"draws that hold {', '.join(f'{s:.0%}' for s in at.draws)} of an outcome's variance, the interval for new "
        f"seeds contained the true value in {_range({k: one.new_seeds for k, one in found.items()})}, that for these "
        f"checkpoints in {_range({k: one.checkpoints for k, one in found.items()})} of {at.studies} each."
    )


def _range(covered: dict[str, float]) -> str:
    least = min(covered, key=covered.__getitem__)
    return f"{100 * covered[least]:.0f}–{100 * max(covered.values()):.0f}% (least at {least})"
