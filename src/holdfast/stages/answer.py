"""Ask the model, as it is before alignment, the benign prompts that come without an answer (`data.responses=self`).

What it says is learned in alignment, so that the model keeps answering as it did, and is what utility is measured by.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from holdfast.datasets.rows import TRAINING
from holdfast.models import load as models
from holdfast.runtime.files import read_frame
from holdfast.runtime.memory import Parts
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config, Count, Options, Whole, section
from holdfast.settings.paths import Layout
from holdfast.stages.pretrain import STAGE as PRETRAIN

SPLITS = (*TRAINING, "test", "tune")  # what is trained on, what utility is of, and what fine-tuning takes
ANSWERS = "answers.parquet"


@section("answer")
class Answer(Options):
    """How the model is asked for what the data lack."""

    path: str | None = Field(
        default=None, description="the model that is asked: a folder or Hub id; null: the base model"
    )
    max_new_tokens: Count = Field(description="of an answer")
    batch_size: Count = Field(description="prompts of a batch")
    prompts: dict[str, Whole | None] = Field(
        default_factory=dict,
        description="how many benign prompts of each split; of training what is beyond it is left out",
    )
    seed: Whole = Field(default=0, description="of what a cap leaves out; with evaluate's own, the same prompts")


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.datasets.answers import unanswered
    from holdfast.datasets.sampling import capped

    path = run.cfg.answer.path or models.base_of(run.cfg.model, run.layout)
    model, tokenizer = models.load(path, run.cfg.model)
    settings, parts = run.cfg.answer, []
    for split in SPLITS:
        benign = models.prompts_of(run.layout, split, "benign")
        parts.append(unanswered(capped(benign, settings.prompts.get(split), settings.seed)))
    rows = pd.concat(parts, ignore_index=True)
    found = answered(model, tokenizer, rows, settings.max_new_tokens, Parts("answer.batch_size", settings.batch_size))
    run.save_table(found[["id", "split", "prompt", "response", "ended"]], ANSWERS)
    whole = float(found["ended"].mean()) if len(found) else 1.0
    silent = int((found["response"] == "").sum())
    run.finish({"answers": len(found), "silent": silent, "ended": whole}, f"{len(found)} answers, {whole:.0%} ended")


def answered(model: Any, tokenizer: Any, rows: Any, max_new_tokens: int, parts: Parts) -> Any:
    """The rows of a data frame with the model's greedy answers, and whether they ended by themselves."""
    from holdfast.datasets.tokens import prompts_ids
    from holdfast.models.reading import answers

    found = answers(model, tokenizer, prompts_ids(tokenizer, rows), max_new_tokens, parts)
    texts = tokenizer.batch_decode([tokens for tokens, _ in found], skip_special_tokens=True)
    return rows.assign(response=list(map(str.strip, texts)), ended=[ended for _, ended in found])


def rows_of(run: Run, split: str, label: str | None = None) -> Any:
    """The rows of a split as `prompts_of` gives them, with the model's own answers where they wait for them. A row
    that is trained on and has none is left out, for silence is not to be learned."""
    from holdfast.datasets.answers import unanswered, with_own

    rows = models.prompts_of(run.layout, split, label)
    if not run.cfg.data.self_answered or split not in SPLITS:
        return rows
    own = read_frame(run.layout.answer(run.names.model) / ANSWERS)
    sentences = run.cfg.data.response_sentences
    filled = with_own(rows, dict(zip(own["id"], own["response"], strict=True)), sentences)
    return filled.drop(index=unanswered(filled).index).reset_index(drop=True) if split in TRAINING else filled


def needed(cfg: Config) -> models.Inputs:
    """What a stage needs that reads such rows."""
    return {Layout.of(cfg).answer(cfg.model.name) / ANSWERS: "answer"} if cfg.data.self_answered else {}


def inputs(cfg: Config) -> models.Inputs:
    return {**models.data_inputs(cfg), **({} if cfg.answer.path else models.base_inputs(cfg))}


STAGE = Stage("answer", run, ("model", "data", "answer"), ("model",), inputs, PRETRAIN)
main = STAGE.main
