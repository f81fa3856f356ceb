"""From command-line overrides to a checked configuration, with errors in one line each."""

from __future__ import annotations

import difflib
import itertools
import re
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError

from holdfast.errors import UserError
from holdfast.runtime.memory import out_of_memory
from holdfast.settings.checks import check
from holdfast.settings.paths import CONF
from holdfast.settings.schema import Config

ConfigStore.instance().store(name="schema", node=Config)


def composed(overrides: list[str]) -> DictConfig:
    """The checked configuration, or a `UserError` that names what is wrong and the valid choices."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides)
        settle(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explained(error)) from None
    except (AssertionError, AttributeError):  # how OmegaConf answers values for a section that is null
        given = ", ".join(o for o in overrides if re.match(r"\+*\w+\.\w+[.=]", o))
        raise UserError(
            f"{given}: a section that is null here takes its values from a file; choose one that has them, such as "
            "align=sft_lora, or write one"
        ) from None
    return cfg


def settle(cfg: DictConfig) -> None:
    """Resolve and check, in place. What a study sets of perturbations that were not chosen goes."""
    OmegaConf.resolve(cfg)
    for name in [name for name, one in cfg.perturb.items() if OmegaConf.is_missing(one, "kind")]:
        if name in _options("perturb"):
            with open_dict(cfg.perturb):
                del cfg.perturb[name]
    check(cfg)


def sweep(overrides: list[str]) -> list[list[str]]:
    """The override lists of each job of a Hydra multirun: the product of all `a,b` and `range` values."""
    axes = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            key = override.get_key_element()
            axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([str(override.input_line)])
    return [list(job) for job in itertools.product(*axes)]


def explained(error: Exception) -> str:
    """One line: what is wrong with an override or a file of `conf/`, and the valid choices."""
    if isinstance(error, UserError):
        return str(error)
    if out_of_memory(error):
        return f"memory ran out ({_first_line(error)}); lower the stage's batch_size, or take a smaller model or dtype"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value ({_first_line(error)})"
    text = str(error)
    group = re.search(r"Could not (?:find|load) '([^']+)/([^']+)'", text)
    if group:
        return f"{group[1]}={group[2]}: no such choice; {_choices(group[2], _options(group[1]))}"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) and error.__cause__ else error
    merged = re.search(r"Error merging override (\S+)", text)
    if isinstance(cause, ValidationError):
        return f"{merged[1] if merged else getattr(cause, 'full_key', '')}: {_first_line(cause)}"
    override = re.search(r"Could not override '([^']+)'", text)
    key = override[1] if override else getattr(error, "full_key", None) or ""
    if key:
        return f"{key}: no such key; {_choices(*_mistyped(key))}"
    return _first_line(error)


def _choices(given: str, options: list[str]) -> str:
    close = difflib.get_close_matches(given, options, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}choose one of {', '.join(options)}"


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in Path(CONF, group).glob("*.yaml"))


def _mistyped(key: str) -> tuple[str, list[str]]:
    """The first part of a dotted key that does not exist, and the keys that exist in its place."""
    node = _default()
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            break
        node = node[part]
    return part, sorted(map(str, node)) if isinstance(node, DictConfig) else []


@cache
def _default() -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].strip()
