"""Tune: apply a method and score it on the tuning split, without keeping the model; for sweeps.

python -m holdfast.tune -m method=fo_refine refine.first_order_lr=1e-4,3e-4 seed=100,101
"""

from __future__ import annotations

import numpy as np
from omegaconf import DictConfig

from holdfast import models
from holdfast.evaluate import bench_of
from holdfast.refine import inputs as refine_inputs
from holdfast.refine import refined
from holdfast.stage import Run, launch

NOISE = 2**33  # added to the seed, whose own streams probe, refinement and evaluation have seen


def run(run: Run) -> None:
    """ASR at matched over-refusal by margins, AUROC and utility on the tuning split, clean and at every point."""
    import pandas as pd

    from holdfast.metrics.rates import asr_and_auroc
    from holdfast.perturbations import Arm, grid, perturbed
    from holdfast.scorer import Scorer

    if run.cfg.method.kind == "none":
        model, tokenizer = models.load(run.layout.align(*run.names[:2], run.seed) / "model", run.cfg.model)
        cost, stability = 0, None
    else:
        done = refined(run)
        model, tokenizer, cost, stability = done.model, done.tokenizer, done.sequences, done.stability
    prompts = models.prompts_of(run.layout, "tune")
    scorer, bench = Scorer(tokenizer, prompts, run.cfg), bench_of(run, tokenizer, NOISE)
    harmful = (prompts["label"] == "harmful").to_numpy()
    rows = []

    def score(arm: Arm, **at: object) -> None:
        margin = scorer.margins_of(arm)
        utility = np.mean(scorer.utility(arm.model, np.flatnonzero(~harmful).tolist()))
        asr, auroc = asr_and_auroc(margin[harmful], margin[~harmful], run.cfg.tables.over_refusal)
        rates = {"asr": asr, "auroc": auroc, "utility": float(utility)}
        rows.append({**at, **rates, "over_refusal": float((margin[~harmful] > 0).mean())})

    score(Arm(model), perturbation="none", level=0.0, draw=0)
    for point in run.progress(grid(run.cfg.perturb), "point"):
        with perturbed(model, point, bench) as arm:
            score(arm, perturbation=point.name, level=point.level, draw=point.draw)
    frame = pd.DataFrame(rows)
    frame.insert(0, "seed", run.seed)
    run.save_table(frame, "scores.parquet")
    means = frame.groupby(["perturbation", "level"])[["asr", "auroc", "utility"]].mean().reset_index()
    flat = {
        f"{row['perturbation']}/{row['level']:g}/{metric}": row[metric]
        for row in means.to_dict("records")
        for metric in ("asr", "auroc", "utility")
    }
    words = ", ".join(f"{key.removesuffix('/asr')} {v:.3f}" for key, v in flat.items() if key.endswith("/asr"))
    run.finish({**flat, "sequences": cost, "stability": stability}, f"ASR {words}")


def inputs(cfg: DictConfig) -> models.Inputs:
    return models.aligned_inputs(cfg) if cfg.method.kind == "none" else refine_inputs(cfg)


if __name__ == "__main__":
    launch("tune", run, inputs)
