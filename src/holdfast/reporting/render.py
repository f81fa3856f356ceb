"""One table in three formats: tidy CSV for machines, Markdown and LaTeX booktabs for people."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from holdfast.metrics.intervals import Estimate


@dataclass(frozen=True)
class Setting:
    """What a caption must state, and what an interval depends on."""

    methods: list[str]
    harmful: int
    benign: int
    threshold: int
    seeds: int
    draws: dict[str, int]
    over_refusal: float
    headline_asr: float
    confidence: float
    utility: str
    reference: str
    headline: dict[str, dict[str, Any] | None]

    @classmethod
    def of(cls, records: pd.DataFrame, cfg: DictConfig, headline: dict[str, dict[str, Any] | None]) -> Setting:
        one = records[["split", "label", "id"]].drop_duplicates().value_counts(["split", "label"])
        return cls(
            list(cfg.study.methods),
            int(one["test", "harmful"]),
            int(one["test", "benign"]),
            int(one["threshold", "benign"]),
            len(cfg.study.seeds),
            {name: p.draws for name, p in cfg.perturb.items() if str(p.kind).endswith("noise")},
            cfg.tables.over_refusal,
            cfg.tables.headline_asr,
            cfg.tables.confidence,
            cfg.evaluate.utility,
            cfg.study.reference,
            headline,
        )

    def caption(self) -> str:
        """The part that every caption shares."""
        return (
            f"{self.seeds} seeds (alignment, probe, refinement and noise; one base model), noise draws per seed: "
            f"{', '.join(f'{name} {draws}' for name, draws in self.draws.items())}; {self.harmful} harmful and "
            f"{self.benign} benign test prompts, thresholds from "
            f"{self.threshold} other benign prompts; judge: rules. [ ] is the {self.confidence:.0%} interval: "
            "Student's t over seed means, at least Wilson's over the prompts. Round-to-nearest (rtn) is simulated; "
            "int8 and nf4 are bitsandbytes kernels (its CPU fallback where there is no CUDA)."
        )


@dataclass(frozen=True)
class Table:
    """`frame` is tidy and goes to CSV; `shown` holds strings and goes to Markdown and LaTeX."""

    frame: pd.DataFrame
    shown: pd.DataFrame
    caption: str
    label: str

    def texts(self) -> dict[str, str]:
        return {
            "csv": self.frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
            "md": f"{self.shown.to_markdown(index=False)}\n\n{self.caption}\n",
            "tex": self._latex(),
        }

    def _latex(self) -> str:
        escaped = self.shown.map(_escape).rename(columns=_escape)
        return (
            escaped.style.hide(axis="index")
            .to_latex(
                hrules=True,
                column_format="l" * self.shown.shape[1],
                position_float="centering",
                position="t",
                caption=_escape(self.caption),
                label=self.label,
            )
            .replace("\\begin{tabular}", "\\footnotesize\n\\begin{tabular}")
        )


def percent(estimate: Estimate) -> str:
    """`18.0 [14.9, 21.6]`, in per cent; – where there is nothing to show."""
    if isnan(estimate.mean):
        return "–"
    mean, low, high = (100 * value for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean:.1f}" if isnan(low) else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def plain(estimate: Estimate) -> str:
    """A number in its own unit, with its interval."""
    if isnan(estimate.mean):
        return "–"
    return (
        f"{estimate.mean:.2f}"
        if isnan(estimate.low)
        else f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
    )


def _escape(text: Any) -> str:
    swaps = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "–": "--", "σ": r"$\sigma$"}
    swaps |= {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "≥": r"$\geq$", "†": r"$\dagger$", "×": r"$\times$"}
    return "".join(swaps.get(letter, letter) for letter in str(text))
