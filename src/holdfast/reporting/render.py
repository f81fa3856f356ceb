"""One table in three formats: tidy CSV for machines, Markdown and LaTeX booktabs for people."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Any

import pandas as pd

from holdfast.metrics.intervals import Estimate

SWAPS = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "–": "--", "−": "$-$"}
SWAPS |= {"σ": r"$\sigma$", "Δ": r"$\Delta$", "±": r"$\pm$", "†": r"$\dagger$", "×": r"$\times$"}
SWAPS |= {"ρ": r"$\rho$", "₊": "$_+$", "₋": "$_-$", "·": r"$\cdot$", "✓": r"$\checkmark$", "≤": r"$\leq$"}
SWAPS |= {"½": r"$\frac12$", "μ": r"$\mu$", "²": "$^2$", "∞": r"$\infty$", "★": r"$\star$"}
SWAPS |= {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$", "≥": r"$\geq$"}


@dataclass(frozen=True)
class Table:
    """`frame` is tidy and goes to CSV; `shown` and the blocks below it hold strings and go to Markdown and LaTeX."""

    frame: pd.DataFrame
    shown: pd.DataFrame
    caption: str
    label: str
    more: tuple[pd.DataFrame, ...] = ()  # blocks shown below the first

    def texts(self) -> dict[str, str]:
        return {
            "csv": self.frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
            "md": "\n\n".join(
                [*(block.to_markdown(index=False, disable_numparse=True) for block in self.blocks), self.caption]
            )
            + "\n",
            "tex": self._latex(),
        }

    @property
    def blocks(self) -> list[pd.DataFrame]:
        return [block for block in (self.shown, *self.more) if len(block)]

    def _latex(self) -> str:
        bodies = [_tabular(block) for block in self.blocks]
        head = f"\\caption{{{_escape(self.caption)}}}\n\\label{{{self.label}}}\n\\footnotesize\n"
        return "\\begin{table}[t]\n\\centering\n" + head + "\n\\medskip\n\n".join(bodies) + "\\end{table}\n"


def _tabular(block: pd.DataFrame) -> str:
    escaped = block.map(_escape).rename(columns=_escape)
    return escaped.style.hide(axis="index").to_latex(hrules=True, column_format="l" * block.shape[1])


def percent(estimate: Estimate) -> str:
    """`18.0 [14.9, 21.6]`, in per cent; – where there is nothing to show."""
    return _shown(estimate, 100, ".1f")


def points(estimate: Estimate) -> str:
    """`+3.0 [-0.9, +6.9]`: a difference of shares, in points."""
    return _shown(estimate, 100, "+.1f")


def number(estimate: Estimate, form: str = ".2f") -> str:
    """A number in its own unit, with its interval if it has one."""
    return _shown(estimate, 1, form)


def _shown(estimate: Estimate, factor: float, form: str) -> str:
    if isnan(estimate.mean):
        return "–"
    mean, low, high = (_formatted(factor * v, form) for v in (estimate.mean, estimate.low, estimate.high))
    return mean if isnan(estimate.low) else f"{mean} [{low}, {high}]"


def _formatted(value: float, form: str) -> str:
    """Rounded by its format, without a sign where that leaves nothing."""
    text = format(value, form)
    return format(0.0, form) if float(text) == 0 else text


def dagger(p: float, confidence: float) -> str:
    """† after a cell whose difference is not significant; nothing where no difference was taken."""
    return " †" if p > 1 - confidence else ""


def _escape(text: Any) -> str:
    return "".join(SWAPS.get(letter, letter) for letter in str(text))
