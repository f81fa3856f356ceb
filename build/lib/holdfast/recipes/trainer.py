"""One run of a TRL trainer, in float32 where all weights train."""

from __future__ import annotations

import math
from typing import Any

import torch

from holdfast.errors import UserError
from holdfast.models import adapters
from holdfast.recipes.gradient import Gradient
from holdfast.runtime.run import Run


def train(
    recipe: Gradient,
    run: Run,
    model: Any,
    tokenizer: Any,
    turns: list[dict[str, Any]],
    parts: tuple[range, ...],
    trainer: Any,
    config: Any,
    own: dict[str, Any],
) -> list[float]:
    """The loss of every step of one of TRL's trainers, which trains `model` in place, a batch in `parts`; `own`: the
    trainer's own arguments. An adapter is merged into the model before this returns. Where all weights train they are
    float32 until then, whatever type they come and go in: AdamW's small steps would be lost on half precision."""
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback

    disable_progress_bars()
    dtype = model.dtype
    base = adapters.snapshot(model) if recipe.lora else {}
    if not recipe.lora:
        _retype(model, torch.float32)
    made = trainer(
        model,
        args=config(**_arguments(recipe, run, parts, dtype), **own),
        train_dataset=Dataset.from_list(turns),
        processing_class=tokenizer,
        callbacks=[_report(recipe, run)],
        peft_config=adapters.adapter(recipe.lora, run.seed) if recipe.lora else None,
    )
    made.remove_callback(PrinterCallback)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    if not math.isfinite(sum(losses)):
        raise UserError(f"align: the loss is {sum(losses)}; lower align.lr={recipe.lr}")
    if recipe.lora:
        adapters.merge(made.model, base, next(iter(made.get_train_dataloader()))["input_ids"])
    _retype(model, dtype)
    return losses


def _retype(model: Any, dtype: Any) -> None:
    """Of the weights alone: buffers, such as the angles of positions, stay as exact as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _arguments(recipe: Gradient, run: Run, parts: tuple[range, ...], dtype: Any) -> dict[str, Any]:
    """What SFT and DPO have in common; `dtype` is the one that the model came in."""
    from transformers import TrainingArguments

    # Releases of transformers before 5.20 or so know it by its former name.
    names = ("activation_checkpointing", "gradient_checkpointing")
    recomputing = next(name for name in names if name in TrainingArguments.__dataclass_fields__)

    return {
        "output_dir": str(run.out / "trainer"),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": len(parts[0]),
        "gradient_accumulation_steps": len(parts),
        "learning_rate": recipe.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(recipe.warmup * recipe.steps),
        "max_length": recipe.max_length,
        # Mixed precision, where the model came in half precision and the device has it.
        "bf16": dtype != torch.float32 and torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        recomputing: False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log 0 for a loss that is not finite
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": run.seed,
    }


def _report(recipe: Gradient, run: Run) -> Any:
    """The callback by which TRL's log lines go to the tracker, and its steps to our one progress line."""
    from transformers import TrainerCallback

    steps = iter(run.progress(range(recipe.steps + 1)))

    class Report(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            next(steps)

        def on_log(self, args: object, state: object, control: object, logs: dict, **_: object) -> None:
            run.tracker.log({key: value for key, value in logs.items() if isinstance(value, float)})

    return Report()
