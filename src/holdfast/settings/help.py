"""The keys of a verb: type, range, default and one sentence each, from the classes that read them."""

from __future__ import annotations

import importlib
import re
import typing
from typing import Any

from pydantic.fields import FieldInfo

from holdfast.settings.compose import composed
from holdfast.settings.options import Options, Registry, plain, sections
from holdfast.settings.overrides import OUTSIDE


def help_of(verb: str, docstring: str, module: str, overrides: list[str]) -> str:
    """The docstring, and a line for every key of the sections that the verb reads, with these overrides."""
    found = importlib.import_module(module)
    reads = found.STAGE.reads if hasattr(found, "STAGE") else getattr(found, "READS", ())
    lines = [f"holdfast {verb}", "", docstring]
    if reads:
        cfg = composed([*getattr(found, "BASE", ()), *overrides])
        for name in (name for name in reads if name in sections()):
            lines += ["", *_section(name, getattr(cfg, name))]
        lines += ["", "Also: seed, results, tracking.*, and Hydra's own: -m for a sweep, --config-dir, hydra.run.dir"]
    return "\n".join(lines)


def _section(name: str, value: Any) -> list[str]:
    one = sections()[name]
    kinds: dict[str, Any] = one.options.kinds if isinstance(one.options, Registry) else {}
    if not one.many:
        lines = [f"{name}   {_sentence(type(value))}"]
        if kinds:
            place = f"<file of conf/{name}{', or module.Class' * (name in OUTSIDE)}>"
            lines[0] += f" {name}={place}; kinds: {', '.join(kinds)}"
        return [*lines, *_fields(type(value), f"{name}.", plain(value))]
    lines = [f"{name}=[{','.join(value)}]   files of conf/{name}, or module.Class; {name}.<file>.<key> sets a key"]
    shared = _shared(kinds)
    mine = f"{name}.<file>."
    lines += [" all kinds", *_fields(shared, mine, {})]
    for kind, options in kinds.items():
        lines += [
            f" kind {kind}: {_sentence(options)}",
            *_fields(options, mine, {}, beside=frozenset(shared.model_fields)),
        ]
    return lines


def _shared(kinds: dict[str, Any]) -> type[Options]:
    """The class that all kinds are made of."""
    lines = [[c for c in kind.__mro__ if isinstance(c, type) and issubclass(c, Options)] for kind in kinds.values()]
    return next(c for c in lines[0] if all(c in line for line in lines[1:]))


def _fields(
    options: type[Options], prefix: str, values: dict[str, Any], beside: frozenset[str] = frozenset()
) -> list[str]:
    """A line for each field but those `beside`, which stand elsewhere."""
    lines = []
    for name, field in options.model_fields.items():
        if name in ("name", "kind", *beside):
            continue
        inner = _options(field.annotation)
        if inner is not None and isinstance(values.get(name), dict):
            lines += _fields(inner, f"{prefix}{name}.", values[name])
            continue
        default = f" = {_short(values[name])}" if name in values else ""
        lines.append(f"  {prefix}{name}{default}   {_kind(field)}{_about(field)}")
    return lines


def _options(annotation: Any) -> type[Options] | None:
    for one in (annotation, *typing.get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Options):
            return one
    return None


def _kind(field: FieldInfo) -> str:
    """The type in words, and its range."""
    words = {
        "float": "number",
        "int": "whole number",
        "str": "text",
        "bool": "true or false",
        "NoneType": "null",
        "None": "null",
    }
    text = str(field.annotation).replace("typing.", "")
    literal = re.search(r"Literal\[(.*?)\]", text)
    if literal:
        kind = "one of " + literal[1].replace("'", "")
    else:
        kind = re.sub(r"<class '(\w+)'>", r"\1", re.sub(r"Annotated\[(\w+), .*?\)\]", r"\1", text))
        kind = re.sub(r"\b(\w+)\b", lambda m: words.get(m[1], m[1].rpartition(".")[2]), kind)
        kind = re.sub(r"Optional\[(.*)\]$", r"\1 or null", kind).replace(" | ", " or ")
        kind = re.sub(r"list\[(.*)\]", r"list of \1s", kind)
        kind = re.sub(r"dict\[(.*?), (.*)\]", r"\2 by name", kind).replace("Any", "value")
    bounds = [
        f"{sign} {getattr(one, name):g}" for one in field.metadata for name, sign in BOUNDS if hasattr(one, name)
    ]
    return " ".join([kind, *bounds])


BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))


def _about(field: FieldInfo) -> str:
    return f"; {field.description}" if field.description else ""


def _sentence(options: type) -> str:
    return " ".join((options.__doc__ or "").split("\n\n")[0].split())


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
