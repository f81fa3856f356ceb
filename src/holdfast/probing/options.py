"""The options of the probe."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field

from holdfast.errors import UserError
from holdfast.settings.options import Config, Count, Options, Positive, Share, Whole, section


class Online(Options):
    """Refinement on random parts of the layers, for the sake of its evaluations: its updates are not kept."""

    steps: Whole = Field(description="0: no online probe")
    queries: Count = Field(description="random directions of a step")
    batch_size: Annotated[int, Ge(2)] = Field(description="examples of a step")
    mu: Positive = Field(description="smoothing radius")
    lr: Positive = Field(description="learning rate")
    normalize: Literal["none", "rms"] = Field(description="rms: divide by the rms of a step's projected gradients")
    subset: Share = Field(description="the share of the layers that a query perturbs")


@section("probe")
class ProbeOptions(Options):
    """How much the alignment loss rises when one layer alone is perturbed."""

    loss: Literal["margin", "nll"] = Field(description="whose rise is measured")
    sigma: Positive = Field(description="what layers are selected at, relative to each matrix's rms")
    other_sigmas: list[Positive] = Field(default_factory=list, description="further radii")
    draws: Count = Field(description="of noise, for each group and radius")
    keep: Count | None = Field(
        default=None,
        description="layers that will be chosen: those that surely are none of the most sensitive ones are drawn no "
        "further; null: all are drawn alike, which ranks from below and between all layers ask for",
    )
    prompts: Annotated[int, Ge(2)] = Field(description="training prompts")
    batch_size: Count = Field(description="prompts of a batch")
    compare: list[Literal["together", "activations", "quantization"]] = Field(
        default_factory=list,
        description="beside noise on the weights of one group: on all decoder layers together, on one layer's "
        "activations, rounding of one group's weights",
    )
    activation_sigma: Positive = Field(description="of noise on activations, relative to each token's rms")
    bits: Annotated[int, Ge(2), Le(16)] = Field(description="of the rounding")
    online: Online
    outcome_draws: Whole = Field(description="of noise on one layer alone, to see what that does to the ASR")
    over_refusal: Annotated[float, Gt(0), Le(0.5)] = Field(description="at which the ASR of outcomes is taken")

    def agree(self, key: str, cfg: Config) -> None:
        if self.sigma in self.other_sigmas:
            raise UserError(f"{key}.other_sigmas={self.other_sigmas}: {self.sigma:g} is {key}.sigma already")
