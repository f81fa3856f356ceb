"""The options of a plan."""

from __future__ import annotations

from pydantic import Field

from holdfast.settings.options import Count, Options, Positive, section


@section("plan")
class PlanOptions(Options):
    """What a plan judges by."""

    gpu_gib: list[Positive] = Field(description="of each GPU to judge by; []: this machine's CPU and memory")
    flops: Positive | None = Field(default=None, description="a second, as forwards reach it; null: measured")
    bandwidth: Positive | None = Field(default=None, description="of memory, bytes a second; null: measured")
    prompt_tokens: Count = Field(description="the longest, until the data set is made")
    response_tokens: Count = Field(description="likewise")
    profile: str | None = Field(
        default=None, description="a folder of a Snakemake profile that is told what each rule needs on Slurm"
    )
