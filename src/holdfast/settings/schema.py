"""What all stages share: the study, its models, and the openings of answers."""

from __future__ import annotations

from datetime import date
from importlib.metadata import PackageNotFoundError, distribution
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import Field, field_validator, model_validator

from holdfast.errors import UserError
from holdfast.settings.options import Config, Count, Options, Positive, Some, section
from holdfast.settings.paths import runs


class Block(Options):
    """Runs beside a study's main grid."""

    models: list[str] | None = Field(default=None, description="null: those of the main grid")
    aligns: Some[str] = Field(description="recipes")
    methods: Some[str] = Field(description="methods")
    seeds: list[int] | None = Field(default=None, description="null: those of the main grid")
    probe: bool = Field(
        default=False, description="whether its models are probed even where no method selects layers by it"
    )


class Variant(Options):
    """A method under another name, with some of its options set otherwise."""

    method: str | None = Field(
        default=None, description="the method that it starts from; null: the one of its own name"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="of the method, as dotted keys or nested")


@section("study")
class Study(Options):
    """The grid of runs."""

    name: str = Field(description="the folder of its results; that of its file unless given")
    models: Some[str] = Field(description="files of conf/model")
    aligns: Some[str] = Field(description="recipes of alignment")
    methods: Some[str] = Field(description="files of conf/method, variants, or module.Class")
    seeds: Some[int] = Field(description="of alignment, probe, refinement and evaluation")
    also: dict[str, Block] = Field(default_factory=dict, description="further runs, by the name of their block")
    variants: dict[str, Variant] = Field(default_factory=dict, description="methods of this study alone")
    reference: str = Field(default="aligned", description="the method that all others are compared with")

    def agree(self, key: str, cfg: Config) -> None:
        """Methods are compared in pairs, seed by seed: all of one recipe need the same seeds."""
        seeds: dict[tuple[str, str], dict[str, list[int]]] = {}
        for model, recipe, method, seed in runs(self):
            seeds.setdefault((model, recipe), {}).setdefault(method, []).append(seed)
        for (model, recipe), found in seeds.items():
            one, *others = sorted(found, key=lambda method: len(found[method]))
            for other in others:
                if sorted(found[other]) != sorted(found[one]):
                    raise UserError(
                        f"study.also: {model}/{recipe} has seeds {found[one]} for {one} and {found[other]} for "
                        f"{other}; give all its methods the same"
                    )


class Shape(Options):
    """A Llama that is built and pretrained in the run."""

    hidden_size: Annotated[int, Ge(8)] = Field(description="width")
    intermediate_size: Annotated[int, Ge(8)] = Field(description="width of the MLP")
    layers: Count = Field(description="decoder layers")
    heads: Count = Field(description="attention heads")
    max_positions: Annotated[int, Ge(16)] = Field(description="tokens of the longest sequence")
    initializer_range: Positive = Field(description="standard deviation of the first weights")


class Package(Options):
    """An installed Python package that carries a model as one GGUF file."""

    name: str = Field(description="as pip knows it")
    file: str = Field(description="a pattern of the file's name")

    def find(self) -> str | None:
        """The file; None where the package is not installed, or has none such."""
        try:
            files = distribution(self.name).files or []
        except PackageNotFoundError:
            return None
        return next((str(file.locate()) for file in files if file.match(self.file)), None)


@section("model")
class Model(Options):
    """The model to align, or one that comes aligned."""

    name: str = Field(description="that of its file")
    path: str | None = Field(
        default=None, description="Hub id, folder or GGUF file; null: built and pretrained in the run"
    )
    package: Package | None = Field(default=None, description="goes before the path where it is installed")
    revision: str | None = Field(default=None, description="of the Hub: a commit, branch or tag")
    origin: str | None = Field(
        default=None, description="of a model that comes aligned, what it was before: Hub id or folder"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(description="auto: what the file holds")
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        default=None, description="of transformers in alignment and lm-eval; null: its choice. All else packs rows"
    )
    device_map: str | None = Field(default=None, description="over several GPUs: auto, balanced; null: one device")
    gpus: Count = Field(default=1, description="cards of a job, over which device_map spreads the model")
    threads: Count | None = Field(
        default=None, description="of a job on a CPU; null: all cores. The last bits of sums depend on it"
    )
    processes: Count = Field(
        default=1,
        exclude=True,  # from what results depend on
        description="that share a job of the probe, zeroth-order refinement or the evaluation, each with its own card",
    )
    chat_template: str | None = Field(
        default=None, description="a file below conf/, or Jinja; for a tokenizer that has none of its own"
    )
    system: str | None = Field(default=None, description="the system turn of conversations that have none")
    template_variables: dict[str, Any] = Field(
        default_factory=dict, description="of the chat template, such as enable_thinking"
    )
    template_date: str = Field(default="2024-07-26", description="what a template that asks for today is told")
    shape: Shape | None = None
    architecture: dict[str, Any] = Field(
        default_factory=dict, description="of a Hub model, as in its config.json: what a plan counts by"
    )

    @property
    def source(self) -> str | None:
        """Where it comes from; None for one that is made in the run."""
        return (self.package.find() if self.package else None) or self.path

    @field_validator("template_date")
    @classmethod
    def day(cls, given: str) -> str:
        try:
            return date.fromisoformat(given).isoformat()
        except ValueError:
            raise ValueError("give a day as 2024-07-26") from None

    @model_validator(mode="after")
    def spread(self) -> Model:
        if self.gpus > 1 and self.device_map is None:
            raise ValueError("gpus: more than one card needs device_map=auto")
        if self.gpus > 1 and self.processes > 1:
            raise ValueError("processes: each has one card; set gpus=1, or processes=1")
        return self


class Openings(Options):
    """How answers begin that refuse, and that comply."""

    refusal: Some[str] = Field(description="texts")
    compliance: Some[str] = Field(description="texts; the first stands for a compliant answer")


@section("openings")
class OpeningSets(Options):
    """`loss` openings are what alignment and refinement train on, `score` openings what margins are scored with: no
    loss after pretraining sees those. A base model built in the run has read both."""

    loss: Openings
    score: Openings

    def agree(self, key: str, cfg: Config) -> None:
        taught, scored = ({*one.refusal, *one.compliance} for one in (self.loss, self.score))
        if taught & scored:
            raise UserError(
                "openings: an opening is in both loss and score; a margin must not be scored on what it was taught"
            )


VALUES: dict[str, Any] = {
    "seed": Annotated[int, Ge(0)],
    "results": str,
    "device": Literal["auto", "cpu", "cuda"],  # auto: a card where there is one
}  # beside the sections
