"""Errors of a configuration in one line: the key, its value, what would be right, and the file that it stands in."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from holdfast.settings.options import SECTIONS, Options, Registry
from holdfast.settings.paths import CONF

KINDS = {
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "float_type": "give a number",
    "finite_number": "give a finite number",
    "string_type": "give text",
    "bool_type": "give true or false",
    "list_type": "give a list",
    "dict_type": "give keys with values",
    "model_type": "give keys with values",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "the list is empty; give at least one",
    "value_error": "{error}",
}


class BadValue(Exception):
    """A value of the key `key` that will not do; `said` is the line, without the file."""

    def __init__(self, key: str, said: str) -> None:
        super().__init__(said)
        self.key, self.said = key, said


def bad_value(error: ValidationError, prefix: str, options: type[Options]) -> BadValue:
    """What pydantic found first; `prefix` is the key of the section that `options` reads."""
    found = error.errors()
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    path = [str(part) for part in first["loc"] if isinstance(part, str)]
    key = ".".join([prefix, *path])
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "missing":
        return BadValue(key, f"{key}: no value is given; set {key}=…")
    if kind == "extra_forbidden":
        return BadValue(key, f"{key}: {_unknown(path, options)}")
    if value is None and kind.endswith("_type"):
        return BadValue(key, f"{key}: no value is given; set {key}=…")
    if kind == "literal_error":
        words = ", ".join(re.findall(r"'([^']*)'", context["expected"]))
        return BadValue(key, f"{key}={value}: choose one of {words}")
    if kind == "value_error" and fields_at(options, path):  # of several fields: the message begins with one of them
        return BadValue(key, f"{key}.{context['error']}")
    shown = "" if kind == "too_short" or path == [] else f"={_short(value)}"
    return BadValue(key, f"{key}{shown}: {KINDS.get(kind, first['msg']).format(**context)}")


def _short(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _unknown(path: list[str], options: type[Options]) -> str:
    """An option that is none of a kind's, or a mistyped key."""
    known = [name for name in fields_at(options, path[:-1]) if name not in ("name", "kind")]
    registries = [one.options for one in SECTIONS.values() if isinstance(one.options, Registry)]
    kinds = {kind: made for registry in registries for kind, made in registry.kinds.items()}
    mine = next((kind for kind, made in kinds.items() if made is options), None)
    elsewhere = any(path[-1] in made.model_fields for made in kinds.values())
    if mine and len(path) == 1 and elsewhere and not difflib.get_close_matches(path[-1], known, n=1, cutoff=0.8):
        return f"kind={mine} does not read it; its options: {', '.join(known)}"
    return f"no such key; {choices(path[-1], known)}"


def choices(given: str, options: Iterable[str]) -> str:
    options = list(options)
    close = difflib.get_close_matches(given, options, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}choose one of {', '.join(options)}"


def fields_at(options: type[Options], path: list[str]) -> list[str]:
    """The keys that may stand below `path`; none where it leads out of the schema."""
    kind: Any = options
    for part in path:
        if typing.get_origin(kind) is dict:  # of sections by name
            kind = _bare(typing.get_args(kind)[1])
        else:
            field = kind.model_fields.get(part) if _is_options(kind) else None
            kind = None if field is None else _bare(field.annotation)
    return list(kind.model_fields) if _is_options(kind) else []


def _is_options(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Options)


def _bare(annotation: Any) -> Any:
    """`X` of `X | None`."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next(one for one in typing.get_args(annotation) if one is not type(None))
    return annotation


def place(key: str, overrides: list[str], chosen: Mapping[str, Any]) -> str:
    """` (in <file>)` for a value that a YAML file gives; nothing for one of the command line, or of no file."""
    given = (re.match(r"[+~]*([\w./@-]+)=", override) for override in overrides)
    if any(one and one[1] not in chosen and f"{key}.".startswith(f"{one[1]}.") for one in given):
        return ""
    found = next((path for path in _sources(overrides, chosen) if _gives(path, key)), None)
    return "" if found is None else f" (in {found})"


def folders(overrides: list[str]) -> list[Path]:
    """Where YAML files are looked for: those of `hydra.searchpath`, then conf/."""
    given = next((o for o in overrides if re.match(r"\+?hydra\.searchpath=", o)), "")
    named = given.partition("=")[2].strip("[]").split(",")
    return [*(Path(one.strip().removeprefix("file://")) for one in named if one.strip()), CONF]


def _sources(overrides: list[str], chosen: Mapping[str, Any]) -> Iterator[Path]:
    """The files of a configuration, those first that go before the others."""
    groups = ["study", *(group for group in reversed(list(chosen)) if group != "study")]
    for group in groups:
        names = chosen.get(group)
        for name in names if isinstance(names, list) else [names]:
            yield from _with_parents(group, str(name), overrides)
    yield CONF / "claims.yaml"
    yield CONF / "config.yaml"


def _with_parents(group: str, name: str, overrides: list[str]) -> Iterator[Path]:
    path = next((p for folder in folders(overrides) if (p := folder / group / f"{name}.yaml").is_file()), None)
    if path is None:
        return
    yield path
    loaded = OmegaConf.load(path)
    for parent in loaded.get("defaults", []) if isinstance(loaded, DictConfig) else []:
        if isinstance(parent, str) and parent != "_self_":
            yield from _with_parents(group, parent, overrides)


def _gives(path: Path, key: str) -> bool:
    """Whether a file holds the key, in the package that its first line names, or else in that of its folder."""
    named = re.match(r"# @package ([\w.-]+)", path.read_text(encoding="utf-8"))
    package = named[1] if named else (path.parent.name if path.parent.name in ("perturb",) else "")
    loaded, inside = OmegaConf.load(path), "" if package == "_global_" else package
    if inside and not key.startswith(f"{inside}."):
        return False
    found: Any = OmegaConf.to_container(loaded)
    for part in key.removeprefix(f"{inside}." if inside else "").split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found is not None
