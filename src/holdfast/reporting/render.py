"""One table in four formats: tidy CSV for machines; Markdown, LaTeX booktabs and a page of HTML for people."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from math import isnan
from typing import Any

import pandas as pd

from holdfast.errors import printable
from holdfast.reporting.latex import EMPHASIS, latex, stacked
from holdfast.statistics.intervals import Estimate

MARKDOWN = re.compile(r"[\\`*|]|(?<=\])\(")
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><style>
body {{ font: 13px/1.4 system-ui, sans-serif; color: #111; margin: 1.5em; }}
p {{ max-width: 75em; }}
table {{ border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; margin: 1em 0; }}
th {{ border-bottom: 1px solid; }}
th, td {{ padding: .2em .7em .2em 0; text-align: left; white-space: nowrap; font-variant-numeric: tabular-nums; }}
tbody tr:hover {{ background: #eee; }}
</style></head><body>
{body}
<p>{caption}</p>
</body></html>
"""


@dataclass(frozen=True)
class Table:
    """`frame` is tidy and goes to CSV; `shown` and the blocks below it hold strings and go to the other formats."""

    frame: pd.DataFrame
    shown: pd.DataFrame
    caption: str
    label: str
    more: tuple[pd.DataFrame, ...] = ()  # blocks shown below the first
    best: pd.DataFrame | None = None  # of the cells of `shown`, which are bold

    def texts(self) -> dict[str, str]:
        return {
            "csv": self.frame.map(_no_formula).to_csv(index=False, float_format="%.6g", lineterminator="\n"),
            "md": "\n\n".join([*(_markdown(block) for block in self._cells("**{}**", _plain)), self.caption]) + "\n",
            "tex": latex(self._cells(r"\textbf{{{}}}", stacked), self.caption, self.label),
            "html": self._page(),
        }

    def _cells(self, strong: str, form: Callable[[Any], str] = str) -> list[pd.DataFrame]:
        """The blocks that have rows, each cell by `form`, and the best ones by `strong` too."""
        first = self.shown.map(lambda cell: form(_tame(cell)))
        if self.best is not None:
            first = first.where(self.best.astype(str) != "True", first.map(strong.format))
        return [
            block
            for block in (first, *(block.map(lambda cell: form(_tame(cell))) for block in self.more))
            if len(block)
        ]

    def _page(self) -> str:
        """Self-contained, for the report: nothing is fetched."""
        cells = self._cells("<b>{}</b>", lambda cell: escape(str(cell)))
        bodies = [block.rename(columns=escape).to_html(index=False, border=0, escape=False) for block in cells]
        caption = EMPHASIS.sub(r"<em>\1</em>", escape(self.caption))
        return PAGE.format(caption=caption, body="\n".join(bodies))


def _tame(cell: Any) -> str:
    """A category of the user's may hold what a terminal obeys, or what turns the direction of writing."""
    return printable(str(cell), spaces=True)


def _no_formula(cell: Any) -> Any:
    """Text that a spreadsheet would run, such as a category of the user's, with an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "@", "\t", "\r")) else cell


def _plain(cell: Any) -> str:
    """A cell in which nothing is Markdown: a star marks what is decided, a category may hold anything."""
    return MARKDOWN.sub(r"\\\g<0>", str(cell).replace("<", "&lt;"))


def _markdown(block: pd.DataFrame) -> str:
    return str(block.to_markdown(index=False, disable_numparse=True))


def percent(estimate: Estimate) -> str:
    """`18.0 [14.9, 21.6]`, in per cent; – where there is nothing to show."""
    return _shown(estimate, 100, ".1f")


def points(estimate: Estimate) -> str:
    """`+3.0 [-0.9, +6.9]`: a difference of shares, in points."""
    return _shown(estimate, 100, "+.1f")


def short(share: float, signed: bool = False) -> str:
    """In per cent or points, as few characters as tell it: `12`, `.4`, with its sign `+3`."""
    value = 100 * share
    text = _formatted(value, f"{'+' if signed else ''}.{0 if abs(value) >= 0.95 else 1}f")
    return text.replace("0.", ".") if abs(value) < 0.95 and float(text) else ("0" if float(text) == 0 else text)


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
