"""From command-line overrides to a checked configuration: OmegaConf composes, pydantic checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from holdfast.errors import UserError, first_line
from holdfast.settings.explain import BadValue, bad_value, choices, place
from holdfast.settings.options import Config, Options, Registry, imported, sections
from holdfast.settings.overrides import NO_FILE, OUTSIDE, expanded, files
from holdfast.settings.paths import CONF
from holdfast.settings.schema import VALUES

NAMED = ("model", "align", "method", "judge", "study")  # sections that are named by the file that was chosen


@cache
def ready() -> None:
    """Let Hydra take every key of a section: pydantic refuses those that are none, and says what would be one."""
    # A section's name is that of its file; so it may stand in interpolations too.
    named = {name: {"name": f"${{hydra:runtime.choices.{name}}}"} for name in NAMED}
    node = OmegaConf.create({name: named.get(name, {}) for name in sections()})
    for name in node:
        OmegaConf.set_struct(node[name], False)
    ConfigStore.instance().store(name="schema", node=node)
    for group in OUTSIDE:
        ConfigStore.instance().store(NO_FILE, {group: {}}, group=group, package="_global_")
    OmegaConf.register_new_resolver("fresh", fresh, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("conf", lambda path: str(CONF / path), replace=True)


def fresh(path: str) -> str:
    """Make that folder, or one with a number behind its name where another run of the same second has made it."""
    mine, number = path, 1
    while True:
        try:
            Path(mine).mkdir(parents=True)
            return mine
        except FileExistsError:
            number += 1
            mine = f"{path}_{number}"


def composed(overrides: list[str]) -> Config:
    """The checked configuration, or a `UserError` that names what is wrong, where it stands, and what would be
    right."""
    return composition(overrides)[0]


def composition(overrides: list[str]) -> tuple[Config, dict[str, Any]]:
    """As `composed`, and its values as the files have them, interpolations unresolved."""
    try:
        asked = expanded(overrides)
        cfg = _hydra(asked)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explained(error)) from None
    HydraConfig.instance().set_config(cfg)  # which names resolve by
    chosen = cfg.hydra.runtime.choices
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    return checked(cfg, chosen, asked), plain


def _hydra(overrides: list[str]) -> DictConfig:
    ready()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides, return_hydra_config=True)


def checked(cfg: DictConfig, chosen: Mapping[str, Any], overrides: list[str]) -> Config:
    """`chosen` maps a group of files to the one chosen, as Hydra tells. Raises `UserError`."""
    chosen = {group: name for group, name in chosen.items() if not str(group).startswith("hydra")}
    try:
        data: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(explained(error)) from None
    try:
        found = read(_without_unchosen(data))
        _check_names(found, chosen)
        return found
    except BadValue as bad:
        given = data["perturb"], data["data"].get("sources") if isinstance(data["data"], dict) else None
        perturb, source = (list(one) if isinstance(one, dict) else [] for one in given)
        files = {**chosen, "perturb": perturb, "source": source}
        raise UserError(bad.said + place(bad.key, overrides, files)) from None


def read(data: Mapping[str, Any]) -> Config:
    """The sections and values that `data` holds, checked; a stage's config.yaml holds all."""
    _check_keys(data)
    found: dict[str, Any] = {}
    for name, one in sections().items():
        if name in data and one.many:
            _check_keys(data[name], name)
            found[name] = {key: _built(one.options, f"{name}.{key}", part) for key, part in data[name].items()}
        elif name in data:
            found[name] = _built(one.options, name, data[name])
    for name, kind in VALUES.items():
        if name in data:
            found[name] = _value(name, kind, data[name])
    if unknown := sorted(data.keys() - found.keys()):
        raise BadValue(unknown[0], f"{unknown[0]}: no such key; {choices(unknown[0], [*sections(), *VALUES])}")
    return agreed(Config(found))


def _check_keys(data: Any, section: str = "") -> None:
    """Raise `BadValue` unless these are keys with values. YAML reads `on`, `null` and `3` as no text."""
    if not isinstance(data, dict):
        raise BadValue(section, f"{section}={data}: give keys with values")
    for key in data:
        if not isinstance(key, str):
            at = f"{section}.{key}".lstrip(".")
            raise BadValue(at, f"{at}: a key that is no text; put it into quotes")


def agreed(cfg: Config) -> Config:
    """The configuration, if its sections fit one another; else a `BadValue` or `UserError`."""
    for name, part in cfg.__dict__.items():
        for key, options in part.items() if isinstance(part, dict) else [("", part)]:
            if isinstance(options, Options):
                options.agree(f"{name}.{key}".rstrip("."), cfg)
    return cfg


def _built(options: type[Options] | Registry, key: str, data: Any) -> Options:
    _check_keys(data, key)
    data = {name: value for name, value in data.items() if value != "???"}
    if isinstance(options, Registry):
        options, data = _kind(options, key, data)
    try:
        return options.model_validate(data)
    except ValidationError as error:
        raise bad_value(error, key, options) from None


def _kind(registry: Registry, key: str, data: dict[str, Any]) -> tuple[type[Options], dict[str, Any]]:
    """The class that reads a section: by its `kind`, or by `_target_` for one that lives outside this package."""
    target, named = data.pop("_target_", None), data.get("kind")
    if not isinstance(target, str | None):
        raise BadValue(f"{key}._target_", f"{key}._target_={target}: give package.module.Class")
    if not (target or named):
        raise BadValue(f"{key}.kind", f"{key}.kind: no value is given; choose one of {', '.join(registry.kinds)}")
    try:
        kind = imported(target) if target else registry[str(named)]
    except UserError as error:
        name, given = ("_target_", target) if target else ("kind", named)
        raise BadValue(f"{key}.{name}", f"{key}.{name}={given}: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, Options)):
        raise BadValue(f"{key}._target_", f"{key}._target_={target}: is no class of options")
    return kind, {**data, "kind": target or named}


def _value(name: str, kind: Any, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        said = bad_value(error, name, Options).said
        raise BadValue(name, said.replace(f"{name}:", f"{name}={value}:", 1)) from None


def _without_unchosen(data: dict[str, Any]) -> dict[str, Any]:
    """What a study sets of perturbations that were not chosen goes."""
    known = files("perturb")
    _check_keys(data["perturb"], "perturb")

    def chosen(name: str, one: Any) -> bool:
        return name not in known or not isinstance(one, dict) or bool({"kind", "_target_"} & set(one))

    kept = {name: one for name, one in data["perturb"].items() if chosen(name, one)}
    return {**data, "perturb": kept}


def _check_names(cfg: Config, chosen: Mapping[str, Any]) -> None:
    """A section's name is that of its file, so that a copied file cannot name another's results; a study's may be
    set, and a method's is that of its variant."""
    for part in NAMED:
        own, name = getattr(cfg, part), str(chosen.get(part))
        one = cfg.study.variants.get(own.name) if part == "method" else None
        variant = one is not None and (one.method or own.name) == name
        outside = part in OUTSIDE and "." in own.name and own.name == own.kind
        if own.name != name and part != "study" and not (variant or outside):
            raise BadValue(
                f"{part}.name", f"{part}.name={own.name}: the name is that of the file, {name}; leave it out"
            )


def explained(error: Exception) -> str:
    """One line: what is wrong with an override or a file of `conf/`, and the valid choices."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value ({first_line(error)})"
    text = str(error)
    if isinstance(error, InterpolationResolutionError):  # a key, a variable or a resolver that there is not
        at = re.search(r"^\s*full_key: (\S+)", text, re.M)
        said = first_line(error).replace("KeyError raised while resolving interpolation: ", "").strip('"')
        return f"{at[1]}: {said}" if at else said
    if "does not support sweep type" in text:
        return "interval(…) is for a sweeper that draws from it; add hydra/sweeper=optuna"
    group = re.search(r"Could not (?:find|load) '([^']+)/([^']+)'", text)
    if group and group[1].startswith("hydra/"):
        there = choices(group[2], re.findall(r"^\t(\w+)$", text, re.M))
        return f"{group[1]}={group[2]}: no such choice; {there}; pip install 'holdfast[sweep]' adds some"
    if group:
        more = ", a Hub id (organization/name) or a folder" * (group[1] == "model")
        return f"{group[1]}={group[2]}: no such choice; {choices(group[2], files(group[1]))}{more}"
    override = re.search(r"Could not override '([^']+)'", text)
    key = override[1] if override else getattr(error, "full_key", None) or ""
    if key:
        return f"{key}: no such key; {choices(key.partition('.')[0], [*sections(), *VALUES])}"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) and error.__cause__ else error
    return first_line(cause)
