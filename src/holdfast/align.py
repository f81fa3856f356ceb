"""Align stage: first-order alignment by supervised fine-tuning on refusals and benign answers (TRL)."""

from __future__ import annotations

import math

from omegaconf import DictConfig

from holdfast import models
from holdfast.errors import UserError
from holdfast.paths import Layout
from holdfast.stage import Run, launch


def run(run: Run) -> None:
    import os

    os.environ["WANDB_DISABLED"] = "true"  # one W&B run per stage: ours
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    settings = run.cfg.align
    model, tokenizer = models.load(models.base_of(run.cfg.model, run.layout), run.cfg.model)
    rows = models.prompts_of(run.layout, "train")
    # Equal parts: a batch of SFT is drawn from as many harmful as benign rows.
    least = rows["label"].value_counts().min()
    rows = rows.groupby("label").sample(least, random_state=run.seed)
    turns = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": r.prompt}],
                "completion": [{"role": "assistant", "content": r.response}],
            }
            for r in rows.itertuples()
        ]
    )
    arguments = SFTConfig(
        output_dir=str(run.out / "trainer"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup * settings.steps),
        max_length=settings.max_length,
        completion_only_loss=True,
        bf16=run.cfg.model.dtype == "bfloat16",
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=run.seed,
    )
    steps = iter(run.progress(range(settings.steps + 1)))

    class Report(TrainerCallback):
        """TRL's log lines go to the tracker, and its steps to our one progress line."""

        def on_step_end(self, *_: object, **__: object) -> None:
            next(steps)

        def on_log(self, args: object, state: object, control: object, logs: dict, **_: object) -> None:
            run.tracker.log({key: value for key, value in logs.items() if isinstance(value, float)})

    trainer = SFTTrainer(model, args=arguments, train_dataset=turns, processing_class=tokenizer, callbacks=[Report()])
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    if not math.isfinite(result.training_loss):
        raise UserError(f"align: the loss is {result.training_loss}; lower align.lr={settings.lr}")
    models.save(trainer.model, tokenizer, run.out)
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    run.finish({"loss": history}, f"loss {history[0]:.3f} to {history[-1]:.3f}")


def inputs(cfg: DictConfig) -> models.Inputs:
    needed = models.data_inputs(cfg)
    if cfg.model.path is None:
        needed[Layout.of(cfg).pretrain(cfg.model.name) / "metrics.json"] = "pretrain"
    return needed


if __name__ == "__main__":
    launch("align", run, inputs)
