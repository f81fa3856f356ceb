"""Evaluate one checkpoint under every perturbation of the grid: one row per prompt and point."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from typing import TYPE_CHECKING, Any

from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout
from holdfast.stages.refine import STAGE as REFINE

if TYPE_CHECKING:
    from holdfast.perturbations import Bench, Point

NOISE = 2**32  # added to the seed, whose own streams the probe and the refinement have seen
SPLITS = (("test", "harmful"), ("test", "benign"), ("threshold", "benign"))


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.datasets.sampling import capped
    from holdfast.evaluation.answers import Scorer
    from holdfast.perturbations import Arm, grid, perturbed
    from holdfast.statistics.rates import check_finite, summarized

    # Headline levels are chosen on the tuning split of the unrefined model, so only there is it scored.
    splits = (*SPLITS, ("tune", "harmful")) if not run.cfg.method.refines else SPLITS
    folder = run.layout.checkpoint(*run.names, run.cfg.method.refines, run.seed) / "model"
    model, tokenizer = models.load(folder, run.cfg.model)
    caps = run.cfg.evaluate.prompts
    prompts = pd.concat(
        [
            capped(models.prompts_of(run.layout, *part), caps.get("/".join(part)), run.cfg.evaluate.seed)
            for part in splits
        ],
        ignore_index=True,
    )
    scorer = Scorer(tokenizer, prompts, run.cfg)
    bench = bench_of(run, tokenizer, NOISE)
    clean = {"perturbation": "none", "family": "clean", "level": 0.0, "draw": 0, "ran": ""}
    frames = [scorer.outcomes(Arm(model), generate=True).assign(**clean)]
    check_finite(frames[0]["margin"].to_numpy(), "margins of the unperturbed model")
    for point in run.progress(grid(run.cfg.perturb), "point"):
        tried = []
        for draw in subdraws(point):
            with perturbed(model, draw, bench) as arm:
                tried.append(scorer.outcomes(arm, point.generate))
            check_finite(tried[-1]["margin"].to_numpy(), f"margins at {point.name} {point.level:g}, draw {draw.draw}")
        frames.append(
            worst(tried).assign(
                perturbation=point.name,
                family=point.family,
                level=point.level,
                draw=point.draw,
                ran=point.perturbation.ran(model.device.type),
            )
        )
    records = scorer.judged(pd.concat(frames, ignore_index=True), model)
    for place, (column, value) in enumerate({**run.names._asdict(), "seed": run.seed}.items()):
        records.insert(place, column, value)
    run.save_table(records, "records.parquet")
    metrics: dict[str, Any] = {**summarized(records), "records": len(records)}
    if run.cfg.evaluate.tasks:
        from holdfast.evaluation.harness import harness

        e = run.cfg.evaluate
        metrics["tasks"] = harness(model, tokenizer, e.tasks, e.task_limit, e.batch_size, e.task_folder)
    run.finish(metrics, f"clean ASR {metrics.get('clean/asr', math.nan):.3f}")


def bench_of(run: Run, tokenizer: Any, noise: int) -> Bench:
    """Training rows for the perturbations that need some, and noise of its own."""
    from holdfast.datasets.tokens import prompts_ids, response_ids
    from holdfast.perturbations import Bench

    opening = run.cfg.openings.loss.compliance[0]

    @functools.cache  # several points ask for the same rows
    def training(rows: str) -> list[tuple[list[int], list[int]]]:
        attack = rows == "attack"
        found = models.prompts_of(run.layout, "train", "harmful" if attack else rows)
        answers = [opening] * len(found) if attack else found["response"]
        return [
            (prompt, response_ids(tokenizer, answer, end=not attack))
            for prompt, answer in zip(prompts_ids(tokenizer, found), answers, strict=True)
        ]

    return Bench(noise + run.seed, tokenizer.pad_token_id, training, run.cfg.evaluate.batch_size)


def subdraws(point: Point) -> list[Point]:
    """The draws of which every prompt keeps its worst: one, unless the point asks for more."""
    count = point.perturbation.subdraws
    return [dataclasses.replace(point, draw=point.draw * count + k) for k in range(count)]


def worst(tried: list[Any]) -> Any:
    """Of several outcomes of the same prompts, each prompt's with the lowest margin."""
    import numpy as np
    import pandas as pd

    least = np.stack([found["margin"] for found in tried]).argmin(0)
    together = pd.concat(tried, keys=range(len(tried)))
    return together.loc[list(zip(least, tried[0].index, strict=True))].droplevel(0)


def inputs(cfg: Config) -> models.Inputs:
    if cfg.evaluate.tasks and importlib.util.find_spec("lm_eval") is None:  # not after hours of evaluation
        raise UserError("evaluate.tasks: lm-eval is not installed; pip install 'holdfast[eval]'")
    made = Layout.of(cfg).checkpoint(cfg.model.name, cfg.align.name, cfg.method.name, cfg.method.refines, cfg.seed)
    return {**models.data_inputs(cfg), made / "metrics.json": "refine" if cfg.method.refines else "align"}


READS = ("model", "method", "perturb", "judge", "evaluate", "openings")
STAGE = Stage("evaluate", run, READS, ("model", "align", "method", "seed"), inputs, REFINE)
main = STAGE.main
