"""The configuration against its schema: missing values, ranges, options, and what must agree between keys."""

from __future__ import annotations

from dataclasses import MISSING as REQUIRED
from dataclasses import Field, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from holdfast.datasets.rows import EVALUATION
from holdfast.errors import UserError
from holdfast.settings.paths import runs
from holdfast.settings.schema import (
    ALIGN_OPTIONS,
    LEVELS,
    METHOD_OPTIONS,
    OPTIONS,
    BlockConfig,
    Config,
    PerturbConfig,
    SourceConfig,
)


def check(cfg: DictConfig) -> None:
    """Raise `UserError` for the first value that is missing, out of range or not among its options."""
    _check_node(cfg, Config, "")
    for name, block in cfg.study.also.items():
        _check_node(block, BlockConfig, f"study.also.{name}.")
    for name, perturb in cfg.perturb.items():
        _check_node(perturb, PerturbConfig, f"perturb.{name}.")
        _check_perturbation(f"perturb.{name}", perturb)
    if cfg.data.kind == "world" and cfg.data.sources:
        raise UserError(f"source=[{','.join(cfg.data.sources)}]: data=world makes its own prompts; add data=local")
    for name, source in cfg.data.sources.items():
        _check_node(source, SourceConfig, f"data.sources.{name}.")
        _check_source(f"data.sources.{name}", source)
    _check_pairs(cfg.study)
    known = {method for _, _, method, _ in runs(cfg.study)}
    if unknown := [m for line in cfg.claims.budgets.values() for m in line if m not in known]:
        raise UserError(
            f"claims.budgets: {unknown[0]} is none of the study's methods; it has {', '.join(sorted(known))}"
        )
    if cfg.probe.sigma in cfg.probe.other_sigmas:
        raise UserError(
            f"probe.other_sigmas={list(cfg.probe.other_sigmas)}: {cfg.probe.sigma:g} is probe.sigma already"
        )
    if cfg.align.lora and cfg.align.kind not in ("sft", "dpo"):
        raise UserError(f"align.lora: kind={cfg.align.kind} does not read it; an adapter is for sft and dpo")
    _check_options("align", cfg.align, ALIGN_OPTIONS)
    _check_options("method", cfg.method, METHOD_OPTIONS)
    if cfg.method.select.rule.endswith("_k") and cfg.model.shape and cfg.method.select.k > cfg.model.shape.layers:
        raise UserError(
            f"method.select.k={cfg.method.select.k}: {cfg.model.name} has {cfg.model.shape.layers} decoder layers"
        )


def _check_pairs(study: DictConfig) -> None:
    """Methods are compared in pairs, seed by seed: all of one recipe need the same seeds."""
    seeds: dict[tuple[str, str], dict[str, list[int]]] = {}
    for model, recipe, method, seed in runs(study):
        seeds.setdefault((model, recipe), {}).setdefault(method, []).append(seed)
    for (model, recipe), found in seeds.items():
        one, *others = sorted(found, key=lambda method: len(found[method]))
        for other in others:
            if sorted(found[other]) != sorted(found[one]):
                raise UserError(
                    f"study.also: {model}/{recipe} has seeds {found[one]} for {one} and {found[other]} for {other}; "
                    "give all its methods the same"
                )


def _check_perturbation(key: str, perturb: DictConfig) -> None:
    _check_options(key, perturb, OPTIONS)
    unit, least, most, whole = LEVELS[perturb.kind]
    for level in perturb.levels:
        if not least <= level <= most or (whole and level != int(level)):
            kind = "whole numbers" if whole else "numbers"
            most_words = f" to {most:g}" if most < float("inf") else " up"
            raise UserError(f"{key}.levels={list(perturb.levels)}: give {unit}, {kind} from {least:g}{most_words}")
    if extra := set(perturb.generate or []) - set(perturb.levels):
        raise UserError(f"{key}.generate: {sorted(extra)} not among levels={list(perturb.levels)}")


def _check_options(key: str, node: DictConfig, options: dict[str, tuple[str, ...]]) -> None:
    """Whether a section gives what its kind reads, and nothing that another kind does."""
    reads = options[node.kind]
    for option in sorted({name for names in options.values() for name in names}):
        if node[option] is None and option in reads:
            raise UserError(f"{key}.{option}: no value is given; kind={node.kind} needs one")
        if node[option] is not None and option not in reads:
            its = ", ".join(reads) or "none"
            raise UserError(f"{key}.{option}: kind={node.kind} does not read it; its options: {its}")


def _check_source(key: str, source: DictConfig) -> None:
    known = ("train", *EVALUATION)
    if unknown := set(source.splits) - set(known):
        raise UserError(f"{key}.splits: no split {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if min(source.splits.values(), default=0) < 0 or sum(source.splits.values()) <= 0:
        raise UserError(f"{key}.splits={dict(source.splits)}: give shares, none below 0 and not all 0")
    for value, label in source.labels.items():
        if label not in ("harmful", "benign"):
            raise UserError(f"{key}.labels.{value}={label}: choose one of harmful, benign")
    _check_pair(f"{key}.columns", source.columns)
    for column, values in source.where.items():
        if not values:
            raise UserError(f"{key}.where.{column}: the list is empty; give at least one value")


def _check_pair(key: str, columns: DictConfig) -> None:
    pair = columns.pair
    if columns.rejected and not columns.response:
        raise UserError(f"{key}.rejected={columns.rejected}: give the preferred answer too, as columns.response")
    if pair and columns.response:
        raise UserError(f"{key}.response={columns.response}: columns.pair gives the responses; set one of the two")
    for name in ("candidates", "required"):
        if pair and pair[name] is not None and len(pair[name]) != 2:
            raise UserError(f"{key}.pair.{name}=[{','.join(pair[name])}]: give two columns, one a candidate")


def _check_node(node: DictConfig, schema: type, prefix: str) -> None:
    for spec in fields(schema):
        key = prefix + spec.name
        if OmegaConf.is_missing(node, spec.name):
            raise UserError(f"{key}: no value is given; set {key}=…")
        value = node[spec.name]
        if is_dataclass(_section_type(spec)) and isinstance(value, DictConfig):
            _check_node(value, _section_type(spec), key + ".")
        elif value is not None:
            _check_value(key, value, spec.metadata)


def _section_type(spec: Field[Any]) -> Any:
    """The dataclass of a nested section; of one that may be null, its field says it."""
    if spec.default_factory is not REQUIRED and isinstance(spec.default_factory, type):
        return spec.default_factory
    return spec.metadata.get("section")


def _check_value(key: str, value: Any, limits: Any) -> None:
    if isinstance(value, ListConfig) and len(value) == 0 and not limits.get("may_be_empty"):
        raise UserError(f"{key}: the list is empty; give at least one")
    for one in value if isinstance(value, ListConfig) else [value]:
        _check_one(key, one, limits)


def _check_one(key: str, value: Any, limits: Any) -> None:
    options = limits.get("options")
    if options and value not in options:
        raise UserError(f"{key}={value}: choose one of {', '.join(options)}")
    above, least, most = (limits.get(bound) for bound in ("above", "least", "most"))
    if isinstance(value, float) and value != value:
        raise UserError(f"{key}={value}: give a number")
    if above is not None and not value > above:
        raise UserError(f"{key}={value}: must be above {above}")
    if least is not None and value < least:
        raise UserError(f"{key}={value}: must be at least {least}")
    if most is not None and value > most:
        raise UserError(f"{key}={value}: must be at most {most}")
