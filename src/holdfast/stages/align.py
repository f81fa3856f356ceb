"""Teach the base model to refuse, by one of the recipes; take a model that comes aligned as it is."""

from __future__ import annotations

from typing import Any

from holdfast.datasets.rows import EVALUATION
from holdfast.models import load as models
from holdfast.recipes import Trained
from holdfast.runtime.memory import Parts
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config
from holdfast.stages import answer
from holdfast.stages.answer import STAGE as ANSWER


def run(run: Run) -> None:
    if not run.cfg.align.trains:
        return given(run)
    from holdfast.datasets.tokens import check_template

    recipe, rows = run.cfg.align, answer.rows_of(run, "train")
    # Equal parts: a batch is drawn from as many harmful as benign rows.
    rows = rows.groupby("label").sample(rows["label"].value_counts().min(), random_state=run.seed)

    def aligned(*parts: range) -> tuple[Any, Any, Trained]:
        model, tokenizer = models.load(models.base_of(run.cfg.model, run.layout), run.cfg.model)
        check_template(tokenizer)
        return model, tokenizer, recipe.align(run, model, tokenizer, rows, parts)

    # Where a batch does not fit, training begins anew, its gradient added up over parts.
    model, tokenizer, (losses, forwards, sequences) = Parts("align.batch_size").whole(
        [range(recipe.batch_size)], aligned
    )
    models.save(model, tokenizer, run.out)
    metrics = {"loss": losses, "forwards": forwards, "sequences": sequences}
    run.finish(metrics, f"loss {losses[0]:.3f} to {losses[-1]:.3f}")


def given(run: Run) -> None:
    """The model comes aligned: what follows finds it where an alignment would have left it."""
    from holdfast.datasets.tokens import check_lengths, prompts_ids

    base = models.base_of(run.cfg.model, run.layout)
    folder, link = models.fetched(base, run.cfg.model.revision), run.out / "model"
    tokenizer = models.tokenizer_of(base, folder, run.cfg.model)
    for split in EVALUATION:  # what the model does not take is said now, not after the probe
        rows = models.prompts_of(run.layout, split)
        check_lengths(rows, map(len, prompts_ids(tokenizer, rows)), tokenizer.model_max_length)
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve(), target_is_directory=True)
    run.finish({"loss": [], "forwards": 0, "sequences": 0}, f"{folder} is taken as it is")


def inputs(cfg: Config) -> models.Inputs:
    return {**models.data_inputs(cfg), **answer.needed(cfg), **models.base_inputs(cfg)}


STAGE = Stage("align", run, ("model", "data", "align", "openings"), ("model", "align", "seed"), inputs, ANSWER)
main = STAGE.main
