"""The options of tables and figures, and the rules by which claims are judged."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import Field, field_validator

from holdfast.errors import UserError
from holdfast.settings.explain import choices
from holdfast.settings.options import Config, Count, Options, Positive, Registry, Share, Some, Whole, section
from holdfast.settings.overrides import files
from holdfast.settings.paths import runs

Correlation = Annotated[float, Ge(0), Le(0.9)]
PRODUCTS = Registry("table or figure", "holdfast.reporting.products")


class Coverage(Options):
    """The simulated studies that say how often an interval holds the true value."""

    studies: Count = Field(description="simulated for each rate")
    rates: Some[float] = Field(description="true rates")
    seeds: Some[Correlation] = Field(description="correlations of outcomes of one seed")
    draws: Some[Correlation] = Field(description="correlations of outcomes of one draw of a seed")


@section("tables")
class TablesOptions(Options):
    """What is made of a study's records."""

    make: Some[str] = Field(description="names of products, or package.module.name")
    source: str | None = Field(default=None, description="folder of compact records; null: the runs' own folders")
    estimates: str | None = Field(default=None, description="folder of the estimates; null: computed anew")
    other_judges: list[str] = Field(
        default_factory=list, description="names of conf/judge, whose verdicts stand beside those of the study's judge"
    )
    transcripts: Whole = Field(
        default=20000, description="responses that the page of transcripts holds at most; 0: no page"
    )
    dir: str | None = Field(default=None, description="where tables go; null: the run's own folder")
    figures: str | None = Field(default=None, description="where figures go; null: the run's own folder")
    false_alarms: Annotated[float, Gt(0), Le(0.5)] = Field(
        description="share of benign prompts at which the detector's view sets its threshold"
    )
    headline_asr: Share = Field(
        description="a perturbation's headline level: the mildest at which the reference's ASR reaches this"
    )
    confidence: Annotated[float, Gt(0.5), Le(0.999)] = Field(description="of intervals")
    resamples: Annotated[int, Ge(50)] = Field(description="of the prompts, for intervals")
    coverage: Coverage

    def agree(self, key: str, cfg: Config) -> None:
        for name in self.make:
            try:
                PRODUCTS[name]
            except UserError as error:
                raise UserError(f"{key}.make={name}: {error}") from None


class JudgedAt(Options):
    """The point at which a family is judged."""

    perturbation: str = Field(description="a name of the grid")
    level: float | None = Field(
        default=None, description="one of its levels; null: for each model and recipe the headline level"
    )


class Guards(Options):
    """What a lower ASR may cost at the same point, as shares."""

    over_refusal: Share = Field(description="more benign prompts refused")
    broken_benign: Share = Field(description="more benign prompts with a broken answer")
    utility: Share = Field(description="less of the probability of reference answers")


class Roles(Options):
    """The methods that play a part in a claim."""

    paper: str = Field(description="the paper's method")
    all: str = Field(description="the same on all layers")
    random: str = Field(description="the same on random layers")
    shuffled: str = Field(description="its walk with random signs")
    extrapolate: str = Field(description="extrapolation along the alignment")
    online: str = Field(description="layers by refinement's own evaluations")
    controls: list[str] = Field(default_factory=list, description="methods with a table of their own")
    forward_only: Some[str] = Field(description="methods without gradients")
    first_orders: Some[str] = Field(description="methods with gradients")


@section("claims")
class Claims(Options):
    """The rules by which claims are judged, to be fixed before a study is run."""

    margin: Share = Field(description="an ASR within this of another counts as no different")
    guards: Guards
    moved: Share = Field(description="of alignment's distance; what moved less is not judged by what it kept")
    confidence: Annotated[float, Gt(0.5), Le(0.999)] = Field(description="of the claims' intervals and tests")
    stable: Annotated[float, Ge(-1), Le(1)] = Field(
        description="the rank correlation above which an order of layers is stable"
    )
    overhead: Positive = Field(description="of refinement over alignment, as a share")
    top_k: Count = Field(description="layers that a choice is compared by")
    families: dict[str, JudgedAt] = Field(default_factory=dict, description="by name; one of null is left out")
    judged: Some[str] = Field(description="recipes at plateau")
    lengths: Some[str] = Field(description="recipes, by the length of their alignment")
    budgets: dict[str, list[str]] = Field(
        default_factory=dict, description="line of a figure -> one method, by its budget"
    )
    optimizers: list[str] = Field(default_factory=list, description="recipes to be compared")
    methods: Roles

    @field_validator("families", mode="before")
    @classmethod
    def given(cls, families: dict[str, Any]) -> dict[str, Any]:
        return {name: at for name, at in families.items() if at is not None}

    def agree(self, key: str, cfg: Config) -> None:
        for name, at in self.families.items():
            there = sorted({*files("perturb"), *(cfg.perturb if "perturb" in cfg else ())})
            if at.perturbation not in there and "." not in at.perturbation:
                raise UserError(
                    f"{key}.families.{name}.perturbation={at.perturbation}: no such perturbation; "
                    f"{choices(at.perturbation, there)}"
                )
        if "study" not in cfg:
            return
        known = {method for _, _, method, _ in runs(cfg.study)}
        if unknown := [m for line in self.budgets.values() for m in line if m not in known]:
            raise UserError(
                f"{key}.budgets: {unknown[0]} is none of the study's methods; it has {', '.join(sorted(known))}"
            )
