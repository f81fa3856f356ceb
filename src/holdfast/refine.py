"""Refine stage: one method, applied to one aligned model at the common budget."""

from __future__ import annotations

import hashlib

from omegaconf import DictConfig

from holdfast import models
from holdfast.errors import UserError
from holdfast.paths import Layout
from holdfast.stage import Run, launch


def run(run: Run) -> None:
    from holdfast.methods import METHODS, Task
    from holdfast.methods.losses import LOSSES, Batches

    settings, method = run.cfg.refine, run.cfg.method
    if method.kind == "none":
        raise UserError(f"method={method.name} leaves the aligned model as it is; there is nothing to refine")
    model, tokenizer = models.load(run.layout.align(run.names[0], run.seed) / "model", run.cfg.model)
    rows = models.prompts_of(run.layout, "train")
    batches = Batches(rows, tokenizer, run.cfg.openings.loss, settings.loss, model.device)
    layers = selected_layers(model, method.select, run)
    outcome = METHODS[method.kind](
        Task(
            model,
            LOSSES[settings.loss],
            batches.stream(settings.batch_size, run.seed),
            layers,
            settings,
            run.seed,
            hashlib.sha256(rows.to_csv().encode()).hexdigest(),
            run.out / "trajectory.jsonl",
            run.progress,
            run.tracker.log,
        )
    )
    models.save(model, tokenizer, run.out)
    metrics = {"layers": layers, "loss": outcome.losses, "forwards": outcome.forwards}
    run.finish(metrics, f"loss {outcome.losses[0]:.3f} to {outcome.losses[-1]:.3f} on {', '.join(layers)}")


def selected_layers(model: object, select: DictConfig, run: Run) -> list[str]:
    """All decoder layers, or the k most sensitive ones of this seed's probe."""
    import pandas as pd

    from holdfast.zo import weight_groups
    from holdfast.zo.layers import decoder_layers

    layers = decoder_layers(weight_groups(model))  # type: ignore[arg-type]
    if select.rule == "all":
        return layers
    if select.k > len(layers):
        raise UserError(f"method.select.k={select.k}: the model has {len(layers)} decoder layers")
    probe = pd.read_parquet(run.layout.probe(run.names[0], run.seed) / "sensitivity.parquet")
    rises = probe.groupby("group")["rise"].mean()[layers]
    return sorted(rises.nlargest(select.k).index, key=layers.index)


def inputs(cfg: DictConfig) -> models.Inputs:
    needed = models.aligned_inputs(cfg)
    if cfg.method.select.rule == "top_k":
        needed[Layout.of(cfg).probe(cfg.model.name, cfg.seed) / "metrics.json"] = "probe"
    return needed


if __name__ == "__main__":
    launch("refine", run, inputs)
