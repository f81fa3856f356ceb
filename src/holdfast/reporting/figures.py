"""Dose-response curves and the sensitivity profile, readable without colour."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

# Okabe and Ito's colour-blind safe palette; markers and line styles carry the same difference in grey.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
ACROSS = 4  # panels beside each other: a page has no room for more
NAME = 0.18  # inches that the name of a line takes
End = tuple[float, str, str, str]  # of a line: where, whose, colour and weight
RC: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42, "figure.dpi": 160}


def dose_response_figure(table: pd.DataFrame, reference: str) -> Figure:
    """Harmful prompts answered against noise level; one panel a noise, one line a method, its name at its end. The
    reference is black with its band; others are black too where their last point lies outside that band (all bands at
    once hide each other; the table has every interval)."""
    noises = [p for p in table["perturbation"].unique() if p.endswith("noise")]
    models, ends = table["model"].unique(), dict[Any, list[End]]()
    height = max(2.9, NAME * table["method"].nunique() + 0.9)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.6 * len(noises), height * len(models)), layout="constrained")
        axes = figure.subplots(len(models), len(noises), squeeze=False, sharey="row")
        for (row, column), axis in np.ndenumerate(axes):
            mine, noise = table[table["model"] == models[row]], noises[column]
            mine = mine[((mine["family"] == "clean") | (mine["perturbation"] == noise)) & mine["asr"].notna()]
            ends[axis] = _doses(axis, mine.sort_values("level"), reference)
            axis.set_xlabel(f"{noise.replace('_', ' ')} σ (relative to rms)")
            axis.set_title(models[row], loc="left", fontsize=9)
            axis.set_ylabel("harmful prompts\nanswered (%)" if column == 0 else "")
        for axis, found in ends.items():  # scales are what they are when all is drawn
            _name_ends(axis, found, NAME / (height - 0.75))
    return figure


def _doses(axis: Any, table: pd.DataFrame, reference: str) -> list[End]:
    own = table[table["method"] == reference]
    axis.fill_between(own["level"], 100 * own["asr_low"], 100 * own["asr_high"], color="black", alpha=0.1, linewidth=0)
    ends = []
    for method in table["method"].unique():
        curve = table[table["method"] == method]
        last = curve.iloc[-1]
        inside = own["asr_low"].iloc[-1] <= last["asr"] <= own["asr_high"].iloc[-1]
        first = method == reference
        colour = "black" if first or not inside else "#777777"
        look = {"color": colour, "linewidth": 2.2 if first else 1, "zorder": 3 if first else 2}
        axis.plot(curve["level"], 100 * curve["asr"], "o-", markersize=3, **look)
        ends.append((100 * last["asr"], method, colour, "bold" if first else "normal"))
    axis.set_xlim(right=1.02 * table["level"].max())
    return ends


def _name_ends(axis: Any, ends: list[End], share: float) -> None:
    """The name of each line beside its end, as near as the names' own height allows, `share` of the axis, with a thin
    line to it."""
    low, high = axis.get_ylim()
    gap, right = share * (high - low), axis.get_xlim()[1]
    ends = sorted(ends)
    places = [end for end, *_ in ends]
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + gap)
    if places:  # half above the lines, half below, and none below the axis
        lift = min(np.mean(places) - np.mean([end for end, *_ in ends]), places[0] - low)
        places = [place - lift for place in places]
    line = {"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
    for (end, name, colour, weight), place in zip(ends, places, strict=True):
        axis.annotate(
            name,
            xy=(right, end),
            xytext=(1.08, place),
            textcoords=("axes fraction", "data"),
            color=colour,
            weight=weight,
            fontsize=8,
            va="center",
            arrowprops=line | {"relpos": (0, 0.5)},
            annotation_clip=False,
        )


def style(place: int) -> dict[str, Any]:
    """Of a line: black is the first one's alone; where markers come again they are hollow, with another dash."""
    if place == 0:
        return {"color": COLOURS[0], "marker": MARKERS[0], "linestyle": STYLES[0]}
    turn, shape = divmod(place - 1, len(MARKERS) - 1)
    look = {"color": COLOURS[1 + (place - 1) % (len(COLOURS) - 1)], "marker": MARKERS[1 + shape]}
    face = {"markerfacecolor": "white"} if turn % 2 else {}
    return look | {"linestyle": STYLES[(place + turn) % len(STYLES)]} | face


def sensitivity_figure(rises: pd.DataFrame) -> Figure:
    """S of every group at one radius, one line a seed, band: 95 % interval of the mean over examples, averaged over
    draws."""
    rises = rises[rises["group"] != "all"].astype({"group": str, "rise": float})
    models = rises["model"].unique()
    with mpl.rc_context(RC):
        figure = Figure(figsize=(5.2, 2.9 * len(models)), layout="constrained")
        axes = figure.subplots(len(models), 1, squeeze=False)[:, 0]
        for axis, model in zip(axes, models, strict=True):
            mine = rises[rises["model"] == model]
            groups = list(mine["group"].unique())
            for place, (seed, found) in enumerate(mine.groupby("seed")):
                examples = found.groupby(["group", "example"])["rise"].mean().unstack()  # (groups, examples)
                mean = examples.mean(axis=1)[groups]
                half = 1.96 * examples.sem(axis=1)[groups]
                at, look = np.arange(len(groups)), style(place)
                axis.plot(at, mean, label=f"seed {seed}", markersize=4, **look)
                axis.fill_between(at, mean - half, mean + half, color=look["color"], alpha=0.15, linewidth=0)
            shown = [at for at, group in enumerate(groups) if _named(group, len(groups))]
            names = [groups[at].replace("layer.", "layer ") for at in shown]
            axis.set_xticks(shown, names, rotation=30, ha="right")
            axis.set_ylabel("sensitivity S\n(rise of the loss)")
            axis.set_title(model, loc="left", fontsize=9)
            axis.legend(frameon=False)
    return figure


def _named(group: str, groups: int) -> bool:
    """Whether there is room for its name: of many layers, every n-th has one."""
    _, layer, number = group.partition("layer.")
    return not layer or (int(number) + 1) % ceil(groups / 12) == 0


def cost_figure(table: pd.DataFrame, reference: str, recipes: list[str]) -> Figure:
    """The ASR where each family is judged, against what refinement cost beside alignment, which may be
    nothing; one marker a method, the reference as a line with its band."""
    table = table[table["estimate"].notna() & table["model"].str.rpartition("/")[2].isin(recipes)]
    table = table[np.isfinite(table["overhead"])]
    models, families = table["model"].unique(), table["family"].unique()
    with mpl.rc_context(RC):
        figure, axes = _panels(list(models), list(families))
        for (model, family), axis in axes.items():
            mine = table[(table["model"] == model) & (table["family"] == family)]
            _reference(axis, mine[mine["method"] == reference])
            for place, method in enumerate((m for m in table["method"].unique() if m != reference), start=1):
                found = mine[mine["method"] == method]
                look = style(place) | {"linestyle": "none", "markersize": 5, "elinewidth": 0.8, "alpha": 0.85}
                at = 100 * found["overhead"] * 1.015 ** (place - 1)  # side by side where costs are equal
                axis.errorbar(at, 100 * found["estimate"], _bars(found), label=method, **look)
            axis.set_xscale("symlog", linthresh=2, linscale=0.5)  # a method without any overhead has a place too
            axis.set_xlim(-0.5, 130 * table["overhead"].max())
            axis.set_xticks([at for at in (0, 2, 5, 10, 20, 50, 100, 200) if at <= 100 * table["overhead"].max()])
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel("overhead over alignment (%)")
            axis.set_title(f"{model}, {family}", loc="left", fontsize=9)
        handles = next(iter(axes.values())).get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panels(models: list[str], families: list[str]) -> tuple[Figure, dict[tuple[str, str], Any]]:
    """A panel for each model and family; those of a model have one scale, and begin a new row."""
    each = -(-len(families) // ACROSS)
    columns, rows = min(ACROSS, len(families)), each * len(models)
    figure = Figure(figsize=(3.4 * columns, 3.1 * rows + 1), layout="constrained")
    grid, axes = figure.subplots(rows, columns, squeeze=False), dict[tuple[str, str], Any]()
    for place, model in enumerate(models):
        mine = grid[place * each : (place + 1) * each].ravel()
        for k, axis in enumerate(mine):
            axis.set_visible(k < len(families))
            if k:
                axis.sharey(mine[0])
            axis.tick_params(labelleft=k % columns == 0)
            axis.set_ylabel("harmful prompts answered (%)" if k % columns == 0 else "")
        axes |= {(model, family): axis for family, axis in zip(families, mine, strict=False)}
    return figure, axes


def lengths_figure(table: pd.DataFrame, costs: pd.DataFrame, recipes: list[str]) -> Figure:
    """The ASR where each family is judged, against the steps of alignment; one line a method that was
    run at several lengths, with its intervals."""
    steps = costs[costs["stage"] == "align"].groupby("model")["steps"].mean()
    table = table.assign(steps=table["model"].map(steps))[table["model"].str.rpartition("/")[2].isin(recipes)]
    table = table[table["estimate"].notna() & (table.groupby("method")["steps"].transform("nunique") > 1)]
    bases, families = table["model"].str.rpartition("/")[0], table["family"].unique()
    with mpl.rc_context(RC):
        figure = Figure(figsize=(3.2 * len(families) + 1.6, 2.9 * bases.nunique()), layout="constrained")
        axes = figure.subplots(bases.nunique(), len(families), squeeze=False, sharey=True)
        for (row, column), axis in np.ndenumerate(axes):
            base, family = bases.unique()[row], families[column]
            mine = table[(bases == base) & (table["family"] == family)]
            for place, method in enumerate(table["method"].unique()):
                found = mine[mine["method"] == method].sort_values("steps")
                axis.errorbar(
                    found["steps"], 100 * found["estimate"], _bars(found), label=method, markersize=4, **style(place)
                )
            axis.set_xlabel("steps of alignment")
            axis.set_title(f"{base}, {family}", loc="left", fontsize=9)
            axis.set_ylabel("harmful prompts answered (%)" if column == 0 else "")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def steps_figure(table: pd.DataFrame, reference: str, lines: dict[str, list[str]]) -> Figure:
    """The ASR where each family is judged, against what refinement spent, in forward-equivalents, which
    steps of unlike methods have in common; one line a method at several budgets, the reference as a line with its
    band."""
    table = table[table["estimate"].notna()]
    models, families = table["model"].unique(), table["family"].unique()
    with mpl.rc_context(RC):
        figure = Figure(figsize=(3.2 * len(families) + 1.8, 2.9 * len(models)), layout="constrained")
        axes = figure.subplots(len(models), len(families), squeeze=False, sharey=True)
        for (row, column), axis in np.ndenumerate(axes):
            mine = table[(table["model"] == models[row]) & (table["family"] == families[column])]
            _reference(axis, mine[mine["method"] == reference])
            for place, (line, methods) in enumerate(lines.items(), start=1):
                found = mine[mine["method"].isin(methods)].sort_values("forwards")
                at = found["forwards"] * 1.03 ** (place - 1)  # side by side where costs are equal
                axis.errorbar(at, 100 * found["estimate"], _bars(found), label=line, markersize=4, **style(place))
            axis.set_xscale("log")
            axis.set_xticks(sorted(table.loc[table["method"].isin(next(iter(lines.values()))), "forwards"].unique()))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel("forwards of refinement")
            axis.set_title(f"{models[row]}, {families[column]}", loc="left", fontsize=9)
            axis.set_ylabel("harmful prompts answered (%)" if column == 0 else "")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _reference(axis: Any, found: pd.DataFrame) -> None:
    """A method's estimate as a line, and its interval as a band, in per cent."""
    for one in found.to_dict("records"):
        axis.axhline(100 * one["estimate"], color="#000000", linewidth=1, label=one["method"])
        axis.axhspan(100 * one["low"], 100 * one["high"], color="#000000", alpha=0.1, linewidth=0)


def _bars(found: pd.DataFrame) -> np.ndarray:
    """Of estimates with intervals, how far each bound lies off, in per cent, (2, rows)."""
    return 100 * np.abs(found[["low", "high"]].to_numpy().T - found["estimate"].to_numpy())


def save(figure: Figure, path: Path, suffix: str) -> None:
    """Write without a date, so that the same numbers give the same bytes."""
    metadata = {"CreationDate": None} if suffix == "pdf" else {"Software": None}
    figure.savefig(path, format=suffix, metadata=metadata)
