"""The options of a data set: a world that is made, or prompts of several sources."""

from __future__ import annotations

import re
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from pydantic import AfterValidator, Field, field_validator, model_validator

from holdfast.datasets.rows import EVALUATION, TRAINING, Row
from holdfast.settings.options import SECTIONS, Count, Options, Registry, Section, Share, Some, Whole
from holdfast.settings.schema import OpeningSets

DATASETS = Registry("data set", "holdfast.datasets")
SECTIONS["data"] = Section(DATASETS)
Rows = list[Row]


class DataSet(Options):
    """Prompts with responses, in splits."""

    kind: str
    seed: Whole = Field(description="of the draws")
    pretrain_rows: Count = Field(description="what a base model made in the run reads")
    vocabulary: Annotated[int, Ge(300)] = Field(description="of the tokenizer of a model made in the run")

    rule: ClassVar[str]  # of the splits, as the data card says it

    @abstractmethod
    def build(self, openings: OpeningSets) -> tuple[Rows, dict[str, Any]]:
        """All rows, and a report: `duplicates`, `near_duplicates`, `left_out` and `revision`, where there is any."""

    @property
    def self_answered(self) -> bool:
        """Whether benign prompts without an answer wait for the model's own."""
        return False

    def split_rule(self) -> str:
        return self.rule

    def files(self) -> list[Path]:
        """Those on this machine that `build` reads: when one changes, the data set is made anew."""
        return []


@DATASETS.register("world")
class World(DataSet):
    """An embedded world of requests, where only the pair of verb and object decides harm."""

    layers: dict[str, int] = Field(description="Latin layers of each split")
    phrasings: dict[str, int] = Field(description="wordings of each pair, by split")
    mixture: dict[str, float] = Field(description="what the base model reads, by share")
    sources: dict[str, Any] = Field(default_factory=dict, description="none: it makes its own prompts")

    @field_validator("sources")
    @classmethod
    def none(cls, sources: dict[str, Any]) -> dict[str, Any]:
        if sources:
            raise ValueError(f"source=[{','.join(sources)}] is not for data=world; add data=local")
        return sources

    def build(self, openings: OpeningSets) -> tuple[Rows, dict[str, Any]]:
        from holdfast.datasets import world

        return world.build(self.model_dump(), openings.model_dump()), {}

    def split_rule(self) -> str:
        return f"whole Latin layers of (verb, object) pairs, {self.layers}: no pair is in two splits"


class Pair(Options):
    """Two candidates in place of `response` and `rejected`: the chosen one is learned, the other rejected."""

    candidates: list[str] = Field(description="two columns of answers")
    chosen: str = Field(description="the column that holds 0 or 1")
    required: list[str] | None = Field(
        default=None, description="a column a candidate, true where that candidate may be learned"
    )

    @field_validator("candidates", "required")
    @classmethod
    def two(cls, columns: list[str] | None) -> list[str] | None:
        if columns is not None and len(columns) != 2:
            raise ValueError("give two columns, one a candidate")
        return columns


class Columns(Options):
    """Which columns of a data set hold what."""

    prompt: str = Field(description="the request, or a chat; where there is no such column, messages is taken")
    context: str | None = Field(default=None, description="what precedes the prompt, in the rows that have any")
    response: str | None = Field(default=None, description="the answer to learn")
    rejected: str | None = Field(default=None, description="an answer that `response` is preferred to")
    pair: Pair | None = None
    id: str | None = Field(default=None, description="must be unique")
    label: str | None = Field(default=None, description="whose values `labels` maps")
    category: str | None = Field(default=None, description="by which a part of the rows is drawn in proportion")
    group: str | None = Field(
        default=None, description="whose rows of one value stay in one split, and are redrawn together"
    )

    @model_validator(mode="after")
    def agreeing(self) -> Columns:
        if self.rejected and not self.response:
            raise ValueError(f"rejected={self.rejected}: give the preferred answer too, as columns.response")
        if self.pair and self.response:
            raise ValueError(f"response={self.response}: columns.pair gives the responses; set one of the two")
        return self


def _shares(splits: dict[str, float]) -> dict[str, float]:
    known = (*TRAINING, *EVALUATION)
    if unknown := set(splits) - set(known):
        raise ValueError(f"no split {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if min(splits.values(), default=0) < 0 or sum(splits.values()) <= 0:
        raise ValueError("give shares, none below 0 and not all 0")
    return splits


Splits = Annotated[dict[str, float], AfterValidator(_shares)]


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]


class LabelSplits(Options):
    """Shares for the rows of one label, in the place of the source's `splits`."""

    harmful: Splits | None = Field(default=None, description="split -> share of the harmful rows")
    benign: Splits | None = Field(default=None, description="split -> share of the benign rows")


class Source(Options):
    """One data set. `file` is a path below `data.dir` or an address, and goes before `hub`."""

    file: str | None = Field(default=None, description="below data.dir, or an address")
    hub: str | None = Field(default=None, description="id of a data set of the Hub")
    revision: str | None = Field(default=None, description="of the Hub: a commit, branch or tag")
    subset: str | None = Field(default=None, description="configuration of the Hub's data set")
    hub_split: str | None = Field(default=None, description="split of the Hub's data set")
    hub_options: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of datasets.load_dataset_builder"
    )
    columns: Columns
    label: Literal["harmful", "benign"] | None = Field(default=None, description="of all rows")
    labels: dict[str, Literal["harmful", "benign"]] = Field(
        default_factory=dict, description="value of the label column -> harmful | benign"
    )
    where: dict[str, Some[str]] = Field(default_factory=dict, description="column -> the values whose rows are kept")
    matches: dict[str, Pattern] = Field(
        default_factory=dict, description="column -> a regular expression that occurs in the rows that are kept"
    )
    splits: Splits = Field(description="split -> share of the rows")
    label_splits: LabelSplits = LabelSplits()
    max_rows: Count | None = Field(default=None, description="a sample of so many rows")


class NearDuplicates(Options):
    """When two prompts are nearly one: by the runs of words that they share."""

    words: Count = Field(description="of a run")
    share: Share = Field(description="of the shorter prompt's runs that are in the other")
    common: Count = Field(description="prompts that a run's rarest word may be in before it counts for less")


@DATASETS.register("local")
class Local(DataSet):
    """Prompts of files, of addresses and of the Hub."""

    dir: str | None = Field(default=None, description="the folder of the files")
    sources: dict[str, Source] = Field(default_factory=dict)
    response_sentences: Count = Field(default=1, description="of each response, so many from its beginning")
    responses: Literal["stand_in", "self"] = Field(
        default="stand_in",
        description="to benign prompts without one: the prompt acknowledged, or none, for the model's own to come",
    )
    near_duplicates: NearDuplicates | None = Field(
        default=None, description="which leave training, and the lower of two evaluation splits; null: they stay"
    )

    rule = "by the hash of the prompt or of its group, with the shares of each source; no prompt is in two splits"

    @property
    def self_answered(self) -> bool:
        return self.responses == "self"

    def files(self) -> list[Path]:
        named = [
            Path(self.dir or ".", one.file) for one in self.sources.values() if one.file and "://" not in one.file
        ]
        return [path for path in named if path.is_file()]

    def build(self, openings: OpeningSets) -> tuple[Rows, dict[str, Any]]:
        from holdfast.datasets import local

        return local.build(self.model_dump(), openings.model_dump())
