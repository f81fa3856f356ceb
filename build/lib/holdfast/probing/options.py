"""The options of the probe."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field

from holdfast.errors import UserError
from holdfast.settings.options import Config, Count, Options, Positive, Share, Whole, section


class Online(Options):
    """Refinement on random parts of the layers, for the sake of its evaluations: its updates are not kept."""

    steps: Whole
    queries: Count
    batch_size: Annotated[int, Ge(2)]
    mu: Positive
    lr: Positive
    normalize: Literal["none", "rms"]
    subset: Share = Field(description="the share of the layers that a query perturbs")


@section("probe")
class ProbeOptions(Options):
    """How much the alignment loss rises when one layer alone is perturbed."""

    loss: Literal["margin", "nll"]
    sigma: Positive = Field(description="what layers are selected at, relative to each matrix's rms")
    other_sigmas: list[Positive] = Field(default_factory=list)
    draws: Count
    prompts: Annotated[int, Ge(2)]
    batch_size: Count
    compare: list[Literal["together", "activations", "quantization"]] = Field(
        default_factory=list,
        description="beside noise on the weights of one group: on all decoder layers together, on one layer's "
        "activations, rounding of one group's weights",
    )
    activation_sigma: Positive
    bits: Annotated[int, Ge(2), Le(16)]
    online: Online
    outcome_draws: Whole = Field(description="of noise on one layer alone, to see what that does to the ASR")
    over_refusal: Annotated[float, Gt(0), Le(0.5)]

    def agree(self, key: str, cfg: Config) -> None:
        if self.sigma in self.other_sigmas:
            raise UserError(f"{key}.other_sigmas={self.other_sigmas}: {self.sigma:g} is {key}.sigma already")
