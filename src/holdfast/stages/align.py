"""Align stage: teaches the base model to refuse, by SFT or DPO (TRL), of all weights or of a low-rank adapter, or by
zeroth-order steps alone; or nothing, to a model that comes aligned."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from omegaconf import DictConfig, OmegaConf

from holdfast.errors import UserError
from holdfast.models import adapters
from holdfast.models import load as models
from holdfast.runtime.memory import Parts
from holdfast.runtime.run import Run, Stage
from holdfast.settings.paths import Layout

PASS = 3  # forward-equivalents of a first-order step: a backward counts as two


def run(run: Run) -> None:
    if run.cfg.align.kind == models.UNALIGNED:
        return given(run)
    from holdfast.datasets.tokens import check_template

    settings, rows = run.cfg.align, models.prompts_of(run.layout, "train")
    # Equal parts: a batch is drawn from as many harmful as benign rows.
    rows = rows.groupby("label").sample(rows["label"].value_counts().min(), random_state=run.seed)
    align = {"sft": sft, "dpo": dpo, "zo": zeroth_order}[settings.kind]

    def aligned(*parts: range) -> tuple[Any, Any, tuple[list[float], int, int]]:
        model, tokenizer = models.load(models.base_of(run.cfg.model, run.layout), run.cfg.model)
        check_template(tokenizer)
        return model, tokenizer, align(run, model, tokenizer, rows, parts)

    # Where a batch does not fit, training begins anew, its gradient added up over parts.
    model, tokenizer, (losses, forwards, sequences) = Parts("align.batch_size").whole(
        [range(settings.batch_size)], aligned
    )
    models.save(model, tokenizer, run.out)
    metrics = {"loss": losses, "forwards": forwards, "sequences": sequences}
    run.finish(metrics, f"loss {losses[0]:.3f} to {losses[-1]:.3f}")


def given(run: Run) -> None:
    """The model comes aligned: what follows finds it where an alignment would have left it."""
    folder, link = models.fetched(models.base_of(run.cfg.model, run.layout), run.cfg.model.revision), run.out / "model"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve(), target_is_directory=True)
    run.finish({"loss": [], "forwards": 0, "sequences": 0}, f"{folder} is taken as it is")


def sft(run: Run, model: Any, tokenizer: Any, rows: Any, parts: tuple[range, ...]) -> tuple[list[float], int, int]:
    """Supervised fine-tuning on the responses: losses, forward-equivalents of one batch, and times its sequences."""
    from trl import SFTConfig, SFTTrainer

    settings = run.cfg.align
    turns = [{"prompt": _user(r.prompt), "completion": _assistant(r.response)} for r in rows.itertuples()]
    optimizer = {"optim": settings.optimizer, "optim_args": settings.optimizer_args}
    losses = _train(
        run, model, tokenizer, turns, parts, SFTTrainer, SFTConfig, {"completion_only_loss": True, **optimizer}
    )
    return losses, PASS * settings.steps, PASS * settings.steps * settings.batch_size


def dpo(run: Run, model: Any, tokenizer: Any, rows: Any, parts: tuple[range, ...]) -> tuple[list[float], int, int]:
    """Direct preference optimization of the response over the rejected one, which is the opening of the other answer
    where the data give none, the base model being the reference (with LoRA: the model with its adapter off). The
    chosen answer's own NLL, weighted by `sft_weight`, keeps it likely in itself."""
    from trl import DPOConfig, DPOTrainer

    settings, openings = run.cfg.align, run.cfg.openings.loss
    other = {"harmful": openings.compliance[0], "benign": openings.refusal[0]}
    turns = [
        {
            "prompt": _user(r.prompt),
            "chosen": _assistant(r.response),
            "rejected": _assistant(r.rejected or other[r.label]),
        }
        for r in rows.itertuples()
    ]
    losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, settings.sft_weight], "beta": settings.beta}
    own = {**losses, "precompute_ref_log_probs": True}
    history = _train(run, model, tokenizer, turns, parts, DPOTrainer, DPOConfig, own)
    reference = 2 * len(rows)
    sequences = 2 * PASS * settings.steps * settings.batch_size + reference
    return history, PASS * settings.steps + math.ceil(len(rows) / settings.batch_size), sequences


def zeroth_order(
    run: Run, model: Any, tokenizer: Any, rows: Any, _: tuple[range, ...]
) -> tuple[list[float], int, int]:
    """Two-point steps on the decoder's matrices from the base model, on the likelihood of the responses. They cut
    their batches themselves where memory runs out."""
    from holdfast.methods import METHODS, Task
    from holdfast.methods.losses import LOSSES, Batches
    from holdfast.zo import weight_groups
    from holdfast.zo.layers import decoder_layers

    settings = {**run.cfg.align, "loss": "nll"}
    task = Task(
        model,
        LOSSES["nll"],
        Batches(rows, tokenizer, run.cfg.openings.loss, "nll", model.device),
        decoder_layers(weight_groups(model)),
        OmegaConf.create({"share": 1.0}),
        OmegaConf.create(settings),
        run.seed,
        hashlib.sha256(rows.to_csv().encode()).hexdigest(),
        lambda: model,
        run.out / "trajectory.jsonl",
        None,
        run.progress,
        run.tracker.log,
    )
    outcome = METHODS["zeroth_order"](task)
    return outcome.losses, outcome.forwards, outcome.forwards * run.cfg.align.batch_size


def _train(
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
    import os

    os.environ["WANDB_DISABLED"] = "true"  # one W&B run per stage: ours
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback

    disable_progress_bars()
    settings = run.cfg.align
    dtype = model.dtype
    base = adapters.snapshot(model) if settings.lora else {}
    if not settings.lora:
        _retype(model, torch.float32)
    made = trainer(
        model,
        args=config(**_arguments(run, parts, dtype), **own),
        train_dataset=Dataset.from_list(turns),
        processing_class=tokenizer,
        callbacks=[_report(run)],
        peft_config=adapters.adapter(settings.lora, run.seed) if settings.lora else None,
    )
    made.remove_callback(PrinterCallback)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    if not math.isfinite(sum(losses)):
        raise UserError(f"align: the loss is {sum(losses)}; lower align.lr={settings.lr}")
    if settings.lora:
        adapters.merge(made.model, base, next(iter(made.get_train_dataloader()))["input_ids"])
    _retype(model, dtype)
    return losses


def _retype(model: Any, dtype: Any) -> None:
    """Of the weights alone: buffers, such as the angles of positions, stay as exact as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _arguments(run: Run, parts: tuple[range, ...], dtype: Any) -> dict[str, Any]:
    """What SFT and DPO have in common; `dtype` is the one that the model came in."""
    import torch
    from transformers import TrainingArguments

    # Releases of transformers before 5.20 or so know it by its former name.
    names = ("activation_checkpointing", "gradient_checkpointing")
    recomputing = next(name for name in names if name in TrainingArguments.__dataclass_fields__)

    settings = run.cfg.align
    return {
        "output_dir": str(run.out / "trainer"),
        "max_steps": settings.steps,
        "per_device_train_batch_size": len(parts[0]),
        "gradient_accumulation_steps": len(parts),
        "learning_rate": settings.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(settings.warmup * settings.steps),
        "max_length": settings.max_length,
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


def _report(run: Run) -> Any:
    """The callback by which TRL's log lines go to the tracker, and its steps to our one progress line."""
    from transformers import TrainerCallback

    steps = iter(run.progress(range(run.cfg.align.steps + 1)))

    class Report(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            next(steps)

        def on_log(self, args: object, state: object, control: object, logs: dict, **_: object) -> None:
            run.tracker.log({key: value for key, value in logs.items() if isinstance(value, float)})

    return Report()


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def inputs(cfg: DictConfig) -> models.Inputs:
    needed = models.data_inputs(cfg)
    if cfg.model.path is None:
        needed[Layout.of(cfg).pretrain(cfg.model.name) / "metrics.json"] = "pretrain"
    return needed


STAGE = Stage("align", run, ("model", "align", "openings"), ("model", "align", "seed"), inputs)
main = STAGE.main
