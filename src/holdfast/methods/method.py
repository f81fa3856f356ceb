"""What every refinement method is: options, and what it does to a model with them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from holdfast.errors import UserError
from holdfast.settings.options import (
    SECTIONS,
    AtLeastZero,
    Config,
    Count,
    Options,
    Positive,
    Registry,
    Section,
    section,
)

if TYPE_CHECKING:
    from holdfast.methods.task import Outcome, Task
    from holdfast.zo import Deployment

METHODS = Registry("method", "holdfast.methods")
LOSSES = Registry("loss", "holdfast.methods.losses")

PASS = 3  # forward-equivalents of a gradient: one forward, and a backward that counts as two
Noise = Literal["rademacher", "gaussian"]
Normalize = Literal["none", "rms", "running"]
Scheme = Literal["q4_0", "nf4", "w4a8"]


class Select(Options):
    """Which groups of weights are refined."""

    rule: Literal["all", "everything", "top_k", "bottom_k", "random_k"] = Field(
        default="all", description="all: decoder layers; everything: also embeddings and head; top_k: by sensitivity"
    )
    k: Count = Field(default=1, description="layers, of the rules that end in _k")
    by: Literal["probe", "online"] = Field(default="probe", description="whose sensitivities")
    parameters: Literal["matrices", "gains", "biases"] = Field(default="matrices", description="of these layers")

    @property
    def probed(self) -> bool:
        """Whether the rule needs a probe."""
        return self.rule in ("top_k", "bottom_k")


class Method(Options):
    """A refinement method. Options that `refine` has too are the method's own: its YAML names them, as a rule by
    `${refine.…}`, so that a study's common values do not overwrite tuned ones."""

    name: str
    kind: str
    select: Select = Select()
    share: Positive = Field(default=1.0, description="of the common budget; above 1 it spends more than the others")
    of: str | None = Field(default=None, description="the method whose walk a control repeats")

    refines: ClassVar[bool] = True  # whether there is a refined model at all
    passes: ClassVar[int] = 0  # forward-equivalents of a step; 0: no steps
    shares: ClassVar[bool] = False  # whether several processes share its evaluations out
    moved: ClassVar[float] = 0  # float32 numbers kept beside the model for every refined weight

    def budget(self, common: Refine) -> int:
        """Forward-equivalents of one batch: what zeroth-order refinement by the common settings would spend."""
        return round(2 * common.queries * common.steps * self.share)

    @abstractmethod
    def refine(self, task: Task) -> Outcome:
        """Refine `task.model` in place."""

    def agree(self, key: str, cfg: Config) -> None:
        shape = cfg.model.shape if "model" in cfg else None
        if self.select.parameters != "matrices" and self.select.rule == "everything":
            raise UserError(f"{key}.select.rule=everything: embeddings and head have matrices alone; give rule=all")
        if self.select.rule.endswith("_k") and shape and self.select.k > shape.layers:
            raise UserError(f"{key}.select.k={self.select.k}: {cfg.model.name} has {shape.layers} decoder layers")


class Deploys(Method):
    """A method whose loss is taken under what the model is to withstand, drawn anew for every query of a step."""

    sigma: AtLeastZero = Field(description="of the weight noise on all decoder layers, relative to each matrix's rms")
    rounding: Scheme | None = Field(description="of their weights, which takes the noise's place; null: noise")

    def deployment(self, task: Task) -> Deployment:
        """Of the task's model."""
        return task.deployment(self.sigma, self.rounding)


@METHODS.register("none")
class Unrefined(Method):
    """The aligned model as it is: what all methods are compared with."""

    refines = False

    def refine(self, task: Task) -> Outcome:
        raise UserError(f"method={self.name} leaves the aligned model as it is; there is nothing to refine")


@section("refine")
class Refine(Options):
    """What all methods share, so that they meet on equal terms; and the defaults of their own options."""

    loss: str = Field(description="nll, cvar, margin, hinge, dpo, or package.module.name")
    beta: Positive = Field(description="of the loss dpo")
    steps: Count = Field(description="zeroth-order steps; with queries, the common budget of forwards")
    queries: Count = Field(description="random directions of a zeroth-order step")
    batch_size: int = Field(ge=2, description="examples of a step, harmful and benign in equal parts")
    mu: Positive = Field(description="smoothing radius of zeroth order, relative to each matrix's rms")
    sigma: Positive = Field(description="weight noise to withstand, relative to each matrix's rms")
    lr: Positive = Field(description="learning rate of zeroth order")
    noise: Noise = Field(description="how random directions are drawn")
    rounding: Scheme | None = Field(description="of weights, which the loss is taken under in place of that noise")
    normalize: Normalize = Field(
        description="rms: divide by the rms of a step's projected gradients; running: and of earlier steps'"
    )
    first_order_lr: Positive = Field(description="learning rate of first order")

    def agree(self, key: str, cfg: Config) -> None:
        try:
            LOSSES[self.loss]
        except UserError as error:
            raise UserError(f"{key}.loss={self.loss}: {error}") from None


SECTIONS["method"] = Section(METHODS)  # after `refine`, whose values a method takes: an error names what was set
