"""Options: typed fields with ranges, declared by the code that reads them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BaseModel, ConfigDict

from holdfast.errors import UserError

T = TypeVar("T")
Positive = Annotated[float, Gt(0)]
AtLeastZero = Annotated[float, Ge(0)]
Share = Annotated[float, Gt(0), Le(1)]  # of a whole, and not nothing
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Some = Annotated[list[T], MinLen(1)]


class Options(BaseModel):
    """A section of the configuration. A field without a default must be given by a YAML file; what is not a field is
    refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def agree(self, key: str, cfg: Config) -> None:
        """Raise `UserError` where a value does not fit the other sections. `key` is this section's own."""


class Config:
    """The sections of one configuration as attributes, each an `Options`, or a dict of them by name."""

    def __init__(self, sections: dict[str, Any]) -> None:
        self.__dict__.update(sections)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the section {name} was not granted")

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def only(self, names: tuple[str, ...]) -> Config:
        """These sections and no others."""
        return Config({name: value for name, value in self.__dict__.items() if name in names})

    def changed(self, **sections: Any) -> Config:
        return Config({**self.__dict__, **sections})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, in the form that YAML files have."""
        return {name: plain(value) for name, value in self.__dict__.items()}


def plain(value: Any) -> Any:
    if isinstance(value, Options):
        return value.model_dump()
    return {name: plain(one) for name, one in value.items()} if isinstance(value, dict) else value


class Registry:
    """The kinds of something, which `room`'s modules register as they are imported."""

    def __init__(self, what: str, room: str) -> None:
        self.what, self.room = what, room
        self._found: dict[str, Any] = {}

    def register(self, kind: str) -> Callable[[T], T]:
        """Decorator."""

        def add(made: T) -> T:
            self._found[kind] = made
            return made

        return add

    @property
    def kinds(self) -> dict[str, Any]:
        importlib.import_module(self.room)
        return self._found

    def __getitem__(self, name: str) -> Any:
        """The kind of that name, or what `package.module.name` names. Raises `UserError` where there is neither."""
        if name in self.kinds:
            return self._found[name]
        if "." in name:
            return imported(name)
        raise UserError(f"no such {self.what}; choose one of {', '.join(self._found)}, or give package.module.name")


def imported(target: str) -> Any:
    """What `package.module.name` names, looked for from the current folder too."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever somebody else's module raises
        raise UserError(f"{target}: cannot be imported ({type(error).__name__}: {error})") from None


@dataclass(frozen=True)
class Section:
    """How a section is read: by one class, or by the kind that it names; `many`: a dict of such by name."""

    options: type[Options] | Registry
    many: bool = False


SECTIONS: dict[str, Section] = {}
# The modules that register sections, lowest first: rooms name themselves here, so that no import runs back up.
ROOMS = (
    *(
        "holdfast.settings.schema",
        "holdfast.runtime.tracking",
        "holdfast.datasets",
        "holdfast.stages.pretrain",
        "holdfast.stages.elicit",
    ),
    *("holdfast.recipes", "holdfast.methods", "holdfast.probing", "holdfast.perturbations", "holdfast.judges"),
    *("holdfast.evaluation", "holdfast.reporting.options", "holdfast.planning.options"),
)


def section(name: str) -> Callable[[type[Options]], type[Options]]:
    """Decorator: this class reads the section `name`."""

    def add(options: type[Options]) -> type[Options]:
        SECTIONS[name] = Section(options)
        return options

    return add


def sections() -> dict[str, Section]:
    for room in ROOMS:
        importlib.import_module(room)
    return SECTIONS
