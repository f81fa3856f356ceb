"""What a command line gives, spelled out in the words that Hydra knows, and the jobs of a sweep."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from omegaconf import OmegaConf

from holdfast.errors import UserError
from holdfast.settings.explain import choices, folders
from holdfast.settings.options import sections
from holdfast.settings.own_files import check_own_files

OUTSIDE = ("align", "method", "judge")  # for which a class may be chosen in the place of a file
NO_FILE = "outside"
NO_NAME = re.compile(r"[-+\d.e_]+|true|false|null|inf|nan|", re.IGNORECASE)  # which Hydra takes for values


def expanded(overrides: list[str]) -> list[str]:
    """What stands in the place of a file, spelled out: a model's folder or Hub id, `package.module.Class` of a method,
    recipe, judge or perturbation, a variant of the study's, and `glob(…)`."""
    _check_form(overrides)
    check_own_files(overrides)
    found = [one for override in overrides for one in _spelled(override, overrides)]
    variants = _variants(found)
    name = next((o.partition("=")[2] for o in found if o.startswith("method=")), None)
    one = variants.get(name) if isinstance(variants, dict) else None
    if not isinstance(one, dict):
        return found
    base, options = one.get("method") or name, one.get("options") or {}
    if not (isinstance(base, str) and isinstance(options, dict)):
        return found  # pydantic says what is wrong
    own = [f"++method.{key}={value}" for key, value in _flat(options)]
    own += [f"++method.name={name}"] * (base != name)
    at = found.index(f"method={name}")
    return [*own, *found[:at], f"method={base}", *found[at + 1 :]]  # what the user sets comes later, and wins


def _check_form(overrides: list[str]) -> None:
    """Raise `UserError` for what Hydra takes for another thing than was meant, or fails on."""
    for override in overrides:
        key, given, value = override.lstrip("+~").partition("=")
        known = files(key, overrides) if key else []
        if given and not key:
            raise UserError(f"{override}: not of the form key=value")
        if key == "hydra" or (key in sections() and not known and not value.startswith("{")):
            raise UserError(f"{override}: {key} is a section; set {key}.<key>=…, see --help")
        if known and NO_NAME.fullmatch(value) and value not in known:
            raise UserError(f"{override}: no such choice; {choices(value, known)}")


def _spelled(override: str, overrides: list[str]) -> list[str]:
    group, _, value = override.partition("=")
    if value.startswith("glob("):
        return [_globbed(override, overrides)]
    place = os.path.expanduser(value)
    if group == "model" and os.path.exists(place) and value not in files(group, overrides):
        return ["model=own", f"model.path={quoted(os.path.abspath(place))}"]
    if group == "model" and "/" in value and all("/" in one for one in _choices(override)):
        return ["model=own", f"model.path={value}"]
    if group in OUTSIDE and "." in value:
        known = files(group, overrides)
        if all("." in one and one not in known for one in _choices(override)):
            return [f"{group}={NO_FILE}", f"++{group}._target_={value}", f"++{group}.name=${{{group}._target_}}"]
    if group == "perturb" and "." in value and _choices(override) == [value]:
        names = [name.strip() for name in value.strip("[]").split(",")]
        classes = [name for name in names if "." in name]
        chosen = f"perturb=[{','.join(name for name in names if name not in classes)}]"
        return [chosen, *(f"++perturb.{name.rpartition('.')[2]}._target_={name}" for name in classes)]
    return [override]


def _globbed(override: str, overrides: list[str]) -> str:
    """A glob as a choice of files: Hydra would also find what is registered and no file, and not every sweeper can
    look for files."""
    (parsed,) = _parsed([override])
    known, pattern = files(parsed.key_or_group, overrides), parsed.value()
    found: list[str] = pattern.filter(known) if isinstance(pattern, Glob) else []
    if not found:
        raise UserError(f"{override}: matches none of {', '.join(known) or 'no files'}")
    return f"{parsed.get_key_element()}=choice({','.join(found)})"


def _choices(override: str) -> list[str]:
    """The values of a sweep over choices, and of what is none the value as it stands."""
    value = override.partition("=")[2]
    if not re.search(r"[,(]", value):
        return [value]
    (parsed,) = _parsed([override])
    return list(parsed.sweep_string_iterator()) if parsed.is_choice_sweep() else [value]


def _parsed(overrides: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(overrides)


def _variants(overrides: list[str]) -> Any:
    """Those that the chosen study's own file names, whatever it has in their place."""
    study = next((o.partition("=")[2] for o in overrides if o.startswith("study=")), None)
    path = next(
        (p for folder in folders(overrides) if study and (p := folder / "study" / f"{study}.yaml").is_file()), None
    )
    found = OmegaConf.select(OmegaConf.load(path), "study.variants") if path else None
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else {}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", "null" if value is None else str(value)))
    return found


def quoted(value: object) -> str:
    """A value as it stands, in the grammar of Hydra's overrides, where a backslash counts before a quote alone."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", str(value))
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def sweep(overrides: list[str]) -> list[list[str]]:
    """The override lists by which a multirun is checked before it begins: those of Hydra's own jobs, the product of
    all values. Of an interval they have the ends alone."""
    axes = [_axis(override) for override in _parsed(overrides)]
    if any(override.startswith("hydra/sweeper=") for override in overrides):
        # It draws its jobs; what the product has beyond them can be more than a lifetime's.
        most = max(map(len, axes))
        return [[axis[min(place, len(axis) - 1)] for axis in axes] for place in range(most)]
    return [list(job) for job in itertools.product(*axes)]


def _axis(override: Override) -> list[str]:
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    if override.is_sweep_override():
        return [f"{key}={one}" for one in override.sweep_string_iterator()]
    return [str(override.input_line)]


@cache
def _listed(group: str, places: tuple[Path, ...]) -> list[str]:
    return sorted({path.stem for folder in places for path in Path(folder, group).glob("*.yaml")})


def files(group: str, overrides: list[str] | None = None) -> list[str]:
    """The names that may be chosen."""
    return _listed(group, tuple(folders(overrides or [])))
