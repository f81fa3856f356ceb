"""The chosen YAML files of a user's folder, read one by one: what Hydra says of a broken one names no file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hydra import version
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from holdfast.errors import UserError, first_line
from holdfast.settings.explain import folders
from holdfast.settings.paths import CONF


def check_own_files(overrides: list[str]) -> None:
    """Raise `UserError` for a file that is chosen, or built upon, and cannot be read or is hidden by one of ours."""
    own = folders(overrides)[:-1]
    seen: set[Path] = set()
    left = [one for override in overrides for one in _chosen(override)] if own else []
    while left:
        name = left.pop()
        if "\0" in name:
            raise UserError(f"{name}: no file has such a name")
        for folder in own:
            path = folder / f"{name}.yaml"
            if path not in seen and path.is_file():
                seen.add(path)
                left += _parents(name, _defaults(folder, name, path))


def _chosen(override: str) -> Iterator[str]:
    """`<group>/<name>`, each that an override or an entry of a defaults list names."""
    key, _, value = override.lstrip("+~").partition("=")
    for name in re.findall(r"[\w.-]+", value):
        yield f"{key.partition('@')[0]}/{name}"


def _parents(name: str, defaults: list[InputDefault]) -> Iterator[str]:
    group = name.rpartition("/")[0]
    for one in defaults:
        if isinstance(one, GroupDefault):
            values = one.value if isinstance(one.value, list) else [one.value]
            inside = one.group if str(one.group).startswith("/") else f"{group}/{one.group}"
            yield from (f"{inside}/{value}".lstrip("/") for value in values)
        elif isinstance(one, ConfigDefault) and not one.is_self():
            yield str(one.path).lstrip("/") if str(one.path).startswith("/") else f"{group}/{one.path}"


def _defaults(folder: Path, name: str, path: Path) -> list[InputDefault]:
    ours = CONF / f"{name}.yaml"
    if ours.exists() and not ours.samefile(path):
        raise UserError(f"{path}: holdfast has a {name}.yaml, which is taken in its place; give yours another name")
    places = ConfigSearchPathImpl()
    places.append("own", str(folder))
    Plugins.instance()  # which registers the reader of files
    version.setbase("1.3")
    try:
        found = ConfigRepository(places).load_config(name)
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply") from None
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path}: {f'line {mark.line + 1}: ' if mark else ''}{problem}") from None
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError, OSError) as error:
        raise UserError(f"{path}: {first_line(error)}") from None
    return (found.defaults_list or []) if found else []
