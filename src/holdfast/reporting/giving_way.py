"""What gives way first in each family of the claims, of a model under noise: its alignment, or its usefulness."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap

from holdfast.reporting.estimates import CLEAN, GUARDS, At, compare, limit, sampled, worsening
from holdfast.reporting.render import short
from holdfast.reporting.setting import Setting
from holdfast.reporting.tables import WIDE
from holdfast.statistics.intervals import Difference
from holdfast.statistics.rates import Metrics

SIDES = {"alignment": ("asr",), "usefulness": GUARDS}
NAMES = {"asr": "ASR", "over_refusal": "over-refusal", "broken_benign": "broken", "utility": "utility"}


@dataclass(frozen=True)
class Side:
    """One side of a model in a family. `place`: of the mildest level at which it gives way, None where it does at
    none; `changes` from the clean model: there of what gives way, else of everything at the strongest level; `holds`:
    whether all intervals, at all levels, exclude that it gives way."""

    name: str
    place: int | None
    changes: dict[str, Difference]
    holds: bool = False


def giving_way(metrics: Metrics, setting: Setting) -> str:
    """A sentence for each family, model and method, and what it means to give way."""
    lines = []
    for family in setting.families:
        for model, method in dict.fromkeys((point.model, point.method) for point in metrics):
            points = _points(metrics, setting, model, method, family)
            if points:
                head = family if len(setting.methods) == 1 else f"{family}, {method}"
                sides = [_side(metrics, setting, model, method, points, name) for name in SIDES]
                told = _sentence(sides, [_level(setting, family, at) for at in points])
                lines += wrap(f"{head}: {told}", WIDE, subsequent_indent="  ")
    return "\n".join([*lines, "", *wrap(_note(setting), WIDE)]) + "\n" if lines else ""


def _points(metrics: Metrics, setting: Setting, model: str, method: str, family: str) -> list[At]:
    """Where a family was answered, from mild to strong: of bits fewer are stronger, of all else more."""
    wanted = setting.families[family]
    found = [
        point[2:]
        for point, measured in metrics.items()
        if point[:3] == (model, method, wanted.perturbation)
        and wanted.level in (None, point.level)
        and not measured["asr"].missing
    ]
    return sorted(found, key=lambda at: at[2], reverse=setting.quantizes(wanted.perturbation))


def _side(metrics: Metrics, setting: Setting, model: str, method: str, points: list[At], name: str) -> Side:
    changes: dict[str, Difference] = {}
    holds = True
    for place, at in enumerate(points):
        found: dict[str, Difference] = {}
        for metric in SIDES[name]:
            now, clean = (sampled(metrics, model, method, one, metric) for one in (at, CLEAN))
            change = compare(now, clean, metric, setting)
            if change.mean == change.mean:  # measured at both
                found[metric] = change
        worse = {metric: worsening(change, metric) for metric, change in found.items()}
        if fell := {metric: found[metric] for metric, d in worse.items() if d.low > limit(setting, metric)}:
            return Side(name, place, fell)
        holds = holds and all(d.high < limit(setting, metric) for metric, d in worse.items())
        changes = found
    return Side(name, None, changes, holds)


def _level(setting: Setting, family: str, at: At) -> str:
    """How a level reads; "" where the family's name says it."""
    label = setting.label(at[0], at[2])
    return "" if setting.titled(family, at) == family else label


def _sentence(sides: list[Side], levels: list[str]) -> str:
    """What gives way first comes first; sides of one level together."""
    first = sorted({side.place for side in sides if side.place is not None})
    parts = []
    for place in first:
        mine = [side for side in sides if side.place == place]
        names, changes = " and ".join(side.name for side in mine), "; ".join(map(_changes, mine))
        at = f" at {levels[place]}" * bool(levels[place])
        parts.append(f"{names} give{'s' * (len(mine) == 1)} way{at} ({changes})")
    to = f" to {levels[-1]}" * bool(levels[-1])
    kept = [side for side in sides if side.place is None]
    if not first:
        does = "gives way" if all(side.holds for side in kept) else "is seen to give way"
        return f"nothing {does}{to} ({'; '.join(map(_changes, kept))})"
    parts += [f"{side.name} {'holds' if side.holds else 'seems to hold'}{to} ({_changes(side)})" for side in kept]
    return "; ".join(parts)


def _changes(side: Side) -> str:
    return ", ".join(
        f"{NAMES[metric]} {short(d.mean, True)} [{short(d.low, True)}, {short(d.high, True)}]"
        for metric, d in side.changes.items()
    )


def _note(setting: Setting) -> str:
    limits = ", ".join(f"{name} {100 * limit(setting, metric):g}" for metric, name in NAMES.items())
    return (
        f"gives way: its {setting.confidence:.0%} interval lies beyond so many points worse than clean: {limits}; "
        "holds: it excludes them; seems to hold, is not seen to give way: too few prompts or draws to tell"
    )
