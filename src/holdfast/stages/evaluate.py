"""Ask one checkpoint under every perturbation of the grid: one row per prompt and point, judged afterwards."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.runtime.files import code_digest
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout
from holdfast.stages.refine import STAGE as REFINE

if TYPE_CHECKING:
    from holdfast.evaluation.answers import Scorer
    from holdfast.perturbations import Bench, Point

NOISE = 2**32  # added to the seed, whose own streams the probe and the refinement have seen
SPLITS = (("test", "harmful"), ("test", "benign"), ("threshold", "benign"))


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.evaluation.answers import Scorer
    from holdfast.evaluation.journal import Journal
    from holdfast.perturbations import grid
    from holdfast.statistics.rates import summarized

    folder = run.layout.checkpoint(*run.names, run.cfg.method.refines, run.seed) / "model"
    model, tokenizer = models.load(folder, run.cfg.model)
    prompts = asked(run)
    scorer, bench = Scorer(tokenizer, prompts, run.cfg), bench_of(run, tokenizer, NOISE)
    journal = Journal(run.out / "points", _context(run, prompts, folder))
    frames: list[Any] = []
    for place, point in enumerate(run.progress([None, *grid(run.cfg.perturb)], "point")):
        if not journal.has(place):
            journal.keep(place, _answered(scorer, model, point, bench, frames[0] if frames else None))
        frames.append(journal.get(place))
    answers = pd.concat(frames, ignore_index=True)
    for at, (column, value) in enumerate({**run.names._asdict(), "seed": run.seed}.items()):
        answers.insert(at, column, value)
    run.save_table(answers, "answers.parquet")
    metrics: dict[str, Any] = {**summarized(answers.assign(verdict=None)), "answers": len(answers)}
    if run.cfg.evaluate.tasks:
        from holdfast.evaluation.harness import harness

        e = run.cfg.evaluate
        metrics["tasks"] = harness(model, tokenizer, e.tasks, e.task_limit, e.batch_size, e.task_folder)
    journal.close()
    responses = int(answers["response"].notna().sum())
    run.finish(metrics, f"{responses} responses, clean AUROC {metrics['clean/auroc']:.3f}")


def asked(run: Run) -> Any:
    """The prompts of the evaluation. Headline levels are chosen on the tuning split of the unrefined model, so only
    there is it scored."""
    import pandas as pd

    from holdfast.datasets.sampling import capped

    splits = (*SPLITS, ("tune", "harmful")) if not run.cfg.method.refines else SPLITS
    caps, seed = run.cfg.evaluate.prompts, run.cfg.evaluate.seed
    parts = [capped(models.prompts_of(run.layout, *part), caps.get("/".join(part)), seed) for part in splits]
    return pd.concat(parts, ignore_index=True)


def _context(run: Run, prompts: Any, folder: Path) -> dict[str, Any]:
    """All that answers depend on."""
    import pandas as pd

    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in models.files_of(str(folder))]
    return {
        "settings": run.cfg.as_dict(),
        "seed": run.seed,
        "prompts": hashlib.sha256(pd.util.hash_pandas_object(prompts).to_numpy().tobytes()).hexdigest(),
        "checkpoint": files,
        "code": code_digest("evaluation", "perturbations", "models", "datasets", "zo"),
    }


def _answered(scorer: Scorer, model: Any, point: Point | None, bench: Bench, clean: Any) -> Any:
    """The answers at one point; None: those of the unperturbed model, which are `clean` for all others."""
    import pandas as pd

    from holdfast.perturbations import Arm, perturbed
    from holdfast.statistics.rates import check_finite

    if point is None:
        found = scorer.outcomes(Arm(model), generate=True)
        check_finite(found["margin"].to_numpy(), "margins of the unperturbed model")
        return found.assign(perturbation="none", family="clean", level=0.0, draw=0, ran="")
    attacked = clean.index[clean["label"] == "harmful"].tolist() if point.perturbation.attacks else None
    tried = []
    for draw in subdraws(point):
        with perturbed(model, draw, bench) as arm:
            tried.append(scorer.outcomes(arm, point.generate, attacked))
        check_finite(tried[-1]["margin"].to_numpy(), f"margins at {point.name} {point.level:g}, draw {draw.draw}")
    found = worst(tried)
    if attacked is not None:
        spared = clean[clean["label"] != "harmful"][found.columns]
        if not point.generate:
            spared = spared.assign(response=None, ended=None)
        found = pd.concat([found, spared]).sort_index()
    at = {"perturbation": point.name, "family": point.family, "level": point.level, "draw": point.draw}
    return found.assign(**at, ran=point.perturbation.ran(model.device.type))


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


READS = ("model", "method", "perturb", "evaluate", "openings")
STAGE = Stage("evaluate", run, READS, ("model", "align", "method", "seed"), inputs, REFINE)
main = STAGE.main
