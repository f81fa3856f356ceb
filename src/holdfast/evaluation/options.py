"""The options of an evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.settings.options import Count, Options, Whole, section


@section("evaluate")
class EvaluateOptions(Options):
    """How prompts are answered and scored."""

    batch_size: Count = Field(description="prompts of a batch")
    max_new_tokens: Count = Field(description="of a response")
    utility: Literal["exact_match", "perplexity"] = Field(
        description="of benign prompts: exact match with the reference answer, or the perplexity of the prompt"
    )
    tasks: list[str] = Field(default_factory=list, description="of lm-eval, on the clean model")
    task_limit: Count | None = Field(default=None, description="documents a task")
    task_folder: str | None = Field(default=None, description="task files of one's own")
    prompts: dict[str, int | None] = Field(
        default_factory=dict, description="cap per split and label, spread over sources and categories"
    )
    seed: Whole = Field(default=0, description="of what a cap leaves out; the same prompts for every checkpoint")
