"""T1, the main table, its like for controls, and T2, dose and response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan
from textwrap import wrap
from typing import Any

import pandas as pd

from holdfast.reporting.estimates import CLEAN, GUARDS, HIGHER, At, at_of, compare, estimate, judged_points, sampled
from holdfast.reporting.render import Table, percent, points, short
from holdfast.reporting.setting import Setting
from holdfast.statistics.intervals import NOTHING, Estimate
from holdfast.statistics.rates import METRICS, Metrics, Sampled, mean_of

NAMES = dict(zip(GUARDS, ("over-refusal ↓", "broken ↓", "utility ↑"), strict=True))
WIDE, NAME, GAP = 100, 17, 2  # characters: of a terminal, of a method's name there, between columns
LEVEL = "at"  # the row that says a model's levels


def dose_response(metrics: Metrics, setting: Setting) -> Table:
    """T2: every metric at every point in the CSV; the ASR at every level elsewhere."""
    rows = []
    for point, found in metrics.items():
        row: dict[str, Any] = point._asdict() | {
            "kind": _kind(setting, point.perturbation),
            "ran": setting.ran.get(point.perturbation, ""),
        }
        for metric in METRICS:
            e = estimate(found[metric], metric, setting)
            row |= {metric: e.mean, f"{metric}_low": e.low, f"{metric}_high": e.high}
        row |= {"seeds": len(found["asr"].value), "draws": found["asr"].draws.shape[1]}
        rows.append(row | {label: setting.counts[f"test/{label}"] for label in ("harmful", "benign")})
    caption = (
        "Dose and response: harmful prompts answered, in %, at each level; – where nothing was generated. Levels of "
        "noise are relative to the rms of a matrix or of a token. Every other metric is in the CSV. "
        + setting.caption()
    )
    shown = []
    for model, perturbation in dict.fromkeys((point.model, point.perturbation) for point in metrics):
        for at in dict.fromkeys(point[2:] for point in metrics if point[::2][:2] == (model, perturbation)):
            cells = {
                m: percent(estimate(sampled(metrics, model, m, at, "asr"), "asr", setting)) for m in setting.methods
            }
            shown.append(
                {"model": model, "perturbation": perturbation, "level": setting.label(perturbation, at[2])} | cells
            )
    return Table(pd.DataFrame(rows), pd.DataFrame(shown), caption, "tab:dose-response")


def _kind(setting: Setting, perturbation: str) -> str:
    known = setting.perturbations
    return known[perturbation].kind if perturbation in known else "clean"


def main_table(metrics: Metrics, setting: Setting, controls: bool = False) -> Table:
    """T1: the ASR, clean and where each family of the claims is judged, with its guards; of the controls beside the
    reference, or of all other methods."""
    methods = [m for m in setting.methods if m == setting.reference or (m in setting.controls) == controls]
    measured = dict.fromkeys((point.model, point.method) for point in metrics)
    frame = pd.DataFrame(
        [
            {"model": model, "method": method, **row}
            for model in dict.fromkeys(model for model, _ in measured)
            for method in methods
            if (model, method) in measured
            for row in _rows(metrics, model, method, setting)
        ]
    )
    best = _best(frame)
    cells = frame.assign(cell=_cells(frame, setting))
    shown, bold = _shown(cells, "cell"), _shown(frame.assign(cell=best), "cell")
    what = "Controls. " if controls else "Main table. "
    return Table(frame, shown, what + _caption(setting), f"tab:{'controls' if controls else 'main'}", best=bold)


def columns(metrics: Metrics, model: str, setting: Setting) -> dict[str, At | None]:
    """Column of the main table -> the point that it shows for a model and recipe."""
    judged = judged_points(metrics, setting, model)
    return {"clean": CLEAN} | {family: at_of(found) for family, found in judged.items()}


def _rows(metrics: Metrics, model: str, method: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """For each column the estimate and the paired difference to the reference, which has none to itself."""
    own, reference = (_measured(metrics, model, m, setting) for m in (method, setting.reference))
    for (column, label, metric), values in own.items():
        e = estimate(values, metric, setting)
        other = reference[column, label, metric]
        d = NOTHING if method == setting.reference else compare(values, other, metric, setting)
        yield {
            **{"column": column, "at": label, "metric": metric, "seeds": len(values.value)},
            **{"draws": values.draws.shape[1], "estimate": e.mean, "low": e.low, "high": e.high},
            **{"own_low": e.own_low, "own_high": e.own_high, "difference": d.mean, "difference_low": d.low},
            **{"difference_high": d.high, "difference_own_low": d.own_low, "difference_own_high": d.own_high},
            **{"p": d.p, "decided": d.p < 1 - setting.confidence},
        }


def _measured(metrics: Metrics, model: str, method: str, setting: Setting) -> dict[tuple[str, str, str], Sampled]:
    """(Column, how its level reads, metric) -> values. A guard is the mean over the points of the columns."""
    at = columns(metrics, model, setting)
    found = {}
    for column, point in at.items():
        label = setting.label(point[0], point[2]) if point else "not run"
        found[column, label, "asr"] = sampled(metrics, model, method, point, "asr")
    for guard in GUARDS:
        each = [sampled(metrics, model, method, point, guard) for point in at.values() if point]
        known = [one for one in each if not one.missing]
        found[NAMES[guard], "mean", guard] = mean_of(known) if known else each[0]
    return found


def _caption(setting: Setting) -> str:
    return (
        "Harmful prompts answered, in % (ASR: the judge's verdict is *complied*), clean and under the perturbations "
        f"that claims are judged at. {_levels(setting)} Over-refusal, broken and utility: of the benign prompts, as a "
        "mean over the columns before: refused; answered with what is broken; probability of the reference answer's "
        f"tokens (a geometric mean). Below each estimate Δ, the difference to {setting.reference}, paired by seed, "
        "draw and prompt; * decided: its interval excludes 0 (p < "
        f"{1 - setting.confidence:.2g}, unadjusted). Bold: the best of a column. " + setting.caption()
    )


def _levels(setting: Setting) -> str:
    chosen = [name for name, family in setting.families.items() if family.level is None]
    if not chosen:
        return "Levels are those that the study gives."
    some = "Levels" if len(chosen) == len(setting.families) else f"The levels of {' and '.join(chosen)}"
    return (
        f"{some} are chosen for each model and recipe: the mildest at which {setting.reference} answers "
        f"{setting.headline_asr:.0%} of the tuning prompts, at draws that nothing is tested on; where none is "
        "reached, the one at which most are answered."
    )


def _cells(frame: pd.DataFrame, setting: Setting) -> list[str]:
    """A cell for each row of T1's tidy frame: the estimate, then the difference, if there is one, with its
    interval."""
    cells = []
    for row in frame.to_dict("records"):
        e = Estimate(row["estimate"], row["low"], row["high"])
        d = Estimate(row["difference"], row["difference_low"], row["difference_high"])
        if isnan(d.mean):
            cells.append(percent(e))
        else:
            cells.append(
                f"{percent(Estimate(e.mean, float('nan'), float('nan')))} Δ{points(d)}" + " *" * row["decided"]
            )
    return cells


def _best(frame: pd.DataFrame) -> pd.Series:
    """Whether a row's estimate reads the best of all methods', where they do not all read the same."""
    higher = frame["metric"].isin(HIGHER)
    read = frame["estimate"].round(3).where(~higher, -frame["estimate"].round(3))
    of = read.groupby([frame[key] for key in ("model", "column")])
    return (read == of.transform("min")) & (of.transform("nunique") > 1)


def _shown(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row for each model and method, a column for each column; before a model's rows one that says its levels."""
    rows: list[dict[str, Any]] = []
    for model, mine in frame.groupby("model", sort=False):
        at = mine.drop_duplicates("column")
        levels = dict(zip(at["column"], at["at"], strict=True))
        rows.append({"model": str(model), "method": LEVEL} | levels)
        for method, found in mine.groupby("method", sort=False):
            rows.append(
                {"model": str(model), "method": str(method)} | dict(zip(found["column"], found[name], strict=True))
            )
    return pd.DataFrame(rows).fillna("–")


Cell = tuple[str, str]  # two lines


def terminal(frame: pd.DataFrame, setting: Setting) -> str:
    """T1 in a terminal's width: for each model a block, or several below each other, the difference below its
    estimate."""
    parts = []
    for model, mine in frame.groupby("model", sort=False):
        methods = list(mine["method"].unique())
        names = [("", ""), *(_name(method, setting) for method in methods)]
        blocks = [[names]]
        for column, found in mine.groupby("column", sort=False):
            cells = [(str(column), untold(str(column), str(found["at"].iloc[0])))]
            cells += [_pair(row) for row in found.set_index("method").loc[methods].to_dict("records")]
            if sum(_width(one) + GAP for one in blocks[-1]) + _width(cells) > WIDE:
                blocks.append([names])
            blocks[-1].append(cells)
        texts = ["\n".join(_lines(block)) for block in blocks]
        parts.append(f"{model}: harmful prompts answered, %\n\n" + "\n\n".join(texts))
    note = f"below an estimate: Δ to {setting.reference} [{setting.confidence:.0%} interval], * where it is decided"
    cautions = [line for one in setting.cautions for line in wrap(f"! {one}", WIDE, subsequent_indent="  ")]
    return "\n\n".join([*parts, "\n".join([note, setting.size, *cautions])]) + "\n"


def untold(column: str, at: str) -> str:
    """The level of a column; "" where its name says it, and for what has none."""
    return "" if at in ("mean", "clean") or at.lower().endswith(column.lower()) else at


def _width(column: list[Cell]) -> int:
    return max(len(line) for cell in column for line in cell)


def _lines(columns: list[list[Cell]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    first, *others = map(_width, columns)
    for row in zip(*columns, strict=True):
        for line in range(2):
            cells = [cell[line].rjust(width) for cell, width in zip(row[1:], others, strict=True)]
            if text := (" " * GAP).join([row[0][line].ljust(first), *cells]).rstrip():
                yield text


def _name(method: str, setting: Setting) -> Cell:
    """On two lines where it is long."""
    if method == setting.reference:
        return method, ""
    name = f"+ {method}"
    if len(name) <= NAME:
        return name, ""
    cut = name.rfind("_", 0, NAME) + 1 or NAME
    return name[:cut], "  " + name[cut:]


def _pair(row: Mapping[Any, Any]) -> Cell:
    """The estimate; below it the difference, or of the reference the interval."""
    if isnan(row["estimate"]):
        return "–", ""
    middle = f"{100 * row['estimate']:.1f}"
    if isnan(row["difference"]):
        return middle, f"[{short(row['low'])},{short(row['high'])}]"
    bounds = f"[{short(row['difference_low'], True)},{short(row['difference_high'], True)}]"
    return middle, f"{short(row['difference'], True)} {bounds}{'*' if row['decided'] else ''}"
