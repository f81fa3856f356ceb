"""Before and after refinement: what each family and guard says of the aligned model and of each method."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from holdfast.reporting.figures import RC
from holdfast.reporting.tables import untold

ABREAST = 3  # panels
BEFORE, AFTER = "#888888", "#000000"


def before_after_figure(table: pd.DataFrame, reference: str) -> Figure:
    """A panel a method of the main table: grey the reference, black the method, each with its interval; filled where
    the difference of the two is decided. What should be low comes first, utility last."""
    table = table[table["estimate"].notna()]
    shown = [(m, method) for m, method in _pairs(table) if method != reference]
    models = list(dict.fromkeys(model for model, _ in shown))
    rows = {model: -(-sum(m == model for m, _ in shown) // ABREAST) for model in models}
    columns = min(ABREAST, max((sum(m == model for m, _ in shown) for model in models), default=1))
    wide, line = (1.3 + 2.5 * columns, 0.32) if columns > 1 else (5.2, 0.22)  # one alone is low: it opens a page
    high = line * table["column"].nunique() + 0.8
    with mpl.rc_context(RC):
        figure = Figure(figsize=(wide, high * max(1, sum(rows.values()))), layout="constrained")
        axes = figure.subplots(max(1, sum(rows.values())), columns, squeeze=False, sharex=True)
        for axis in axes.flat:
            axis.set_visible(False)
        first = 0
        for model in models:
            for place, method in enumerate(method for m, method in shown if m == model):
                axis = axes[first + place // columns][place % columns]
                _panel(axis, table[table["model"] == model], method, reference, labels=place % columns == 0)
                axis.set_title(method if len(models) == 1 else f"{model}\n{method}", loc="left", fontsize=9)
            first += rows[model]
        figure.supxlabel(f"%; grey: {reference}, black: the method\nfilled: the difference is decided", fontsize=8)
    return figure


def _pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(table["model"], table["method"], strict=True)))


def _panel(axis: Any, table: pd.DataFrame, method: str, reference: str, labels: bool) -> None:
    names = list(dict.fromkeys(table["column"]))
    sides = {m: table[table["method"] == m].set_index("column") for m in (reference, method)}
    for place, name in enumerate(names):
        for side, colour, shift in ((reference, BEFORE, 0.16), (method, AFTER, -0.16)):
            if name not in sides[side].index:
                continue
            one = sides[side].loc[name]
            y = len(names) - 1 - place + shift
            axis.plot([100 * one["low"], 100 * one["high"]], [y, y], color=colour, linewidth=1.2)
            filled = side == reference or bool(one["decided"])
            axis.plot([100 * one["estimate"]], [y], "o", color=colour, markersize=5, mfc=colour if filled else "white")
    axis.set_visible(True)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xlim(left=0)
    axis.set_yticks(range(len(names)), list(reversed([_label(table, name) for name in names])) if labels else [])
    axis.axhline(2.5, color="#cccccc", linewidth=0.8)  # the three guards are below
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelbottom=True)


def _label(table: pd.DataFrame, name: str) -> str:
    return f"{name} {untold(name, str(table.loc[table['column'] == name, 'at'].iloc[0]))}".rstrip()
