"""Probe stage: how much the alignment loss rises when one layer alone is perturbed."""

from __future__ import annotations

from holdfast import models
from holdfast.stage import Run, launch


def run(run: Run) -> None:
    import pandas as pd
    import torch

    from holdfast.methods.losses import LOSSES, Batches
    from holdfast.zo import sensitivity, weight_groups

    settings = run.cfg.probe
    model, tokenizer = models.load(run.layout.align(run.names[0], run.seed) / "model", run.cfg.model)
    rows = models.prompts_of(run.layout, "train")
    batches = Batches(rows, tokenizer, run.cfg.openings.loss, settings.loss, model.device)
    stream = batches.stream(settings.batch_size, run.seed)
    chunks = [next(stream) for _ in range(-(-settings.prompts // settings.batch_size))]

    def losses() -> torch.Tensor:
        return torch.cat([LOSSES[settings.loss](model, chunk) for chunk in chunks])

    groups = weight_groups(model)
    rises = sensitivity(
        losses,
        groups,
        sigma=settings.sigma,
        draws=settings.draws,
        seed=run.seed,
        progress=lambda points: run.progress(points, "evaluation"),
    )
    sizes = {group: sum(p.numel() for p in tensors.values()) for group, tensors in groups.items()}
    frame = pd.DataFrame(
        {"model": run.names[0], "seed": run.seed, "group": group, "draw": draw, "example": example}
        | {"rise": rise, "parameters": sizes[group]}
        for group, found in rises.items()
        for draw, examples in enumerate(found.tolist())
        for example, rise in enumerate(examples)
    )
    run.save_table(frame, "sensitivity.parquet")
    means = {group: found.mean().item() for group, found in rises.items()}
    for place, (group, mean) in enumerate(means.items()):
        run.tracker.log({"group": place, f"sensitivity/{group}": mean})
    top = max(means, key=lambda group: means[group])
    run.finish({"sensitivity": means}, f"most sensitive: {top} (+{means[top]:.3f})")


if __name__ == "__main__":
    launch("probe", run, models.aligned_inputs)
