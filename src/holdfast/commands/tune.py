"""Apply a method and score it on the tuning split, without keeping the model; for sweeps.

holdfast tune -m method=fo_refine method.lr=1e-4,3e-4 seed=100,101
holdfast tune sweep=multirun/tune/<date> out=tuning.csv        # what that sweep found, a row a setting
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.runtime.run import Run, Stage
from holdfast.runtime.tracking import flatten
from holdfast.settings.options import Config
from holdfast.stages.evaluate import bench_of
from holdfast.stages.refine import inputs as refine_inputs
from holdfast.stages.refine import refined

NOISE = 2**33  # added to the seed, whose own streams probe, refinement and evaluation have seen


def run(run: Run) -> None:
    """ASR at matched over-refusal by margins, AUROC and utility on the tuning split, clean and at every point."""
    import pandas as pd

    from holdfast.evaluation.answers import Scorer
    from holdfast.perturbations import Arm, grid, perturbed
    from holdfast.statistics.rates import asr_and_auroc

    if not run.cfg.method.refines:
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


def inputs(cfg: Config) -> models.Inputs:
    return refine_inputs(cfg) if cfg.method.refines else models.aligned_inputs(cfg)


READS = ("model", "method", "refine", "perturb", "judge", "evaluate", "openings", "tables")
STAGE = Stage("tune", run, READS, ("model", "align", "method", "seed"), inputs)


def main(arguments: list[str]) -> str | None:
    if any(word.startswith("sweep=") for word in arguments):
        return summary(arguments)
    STAGE.main(arguments)
    return None


def summary(arguments: list[str]) -> str:
    """Write the table as CSV; gives it as Markdown, the best setting of a method first. Mean ASR: over perturbations,
    at matched over-refusal, by margins, on the tuning split."""
    import pandas as pd

    asked = dict(argument.partition("=")[::2] for argument in arguments)
    if set(asked) != {"sweep", "out"}:
        raise UserError("give sweep=<folder of a sweep of holdfast tune> and out=<file>.csv")
    jobs = sorted(Path(asked["sweep"]).rglob("scores.parquet"))
    if not jobs:
        raise UserError(f"sweep={asked['sweep']}: no scores.parquet below it; holdfast tune -m makes them")
    frame = pd.DataFrame(map(_row, jobs))
    settings = [c for c in frame.columns if c == "method" or c.partition(".")[0] in ("method", "refine")]
    scores = [c for c in frame.columns if c not in (*settings, "seed")]
    table = frame.groupby(settings, dropna=False)[scores].mean()
    table["seeds"] = frame.groupby(settings, dropna=False)["seed"].nunique()
    table = table.reset_index().sort_values(["method", "mean asr"]).dropna(axis=1, how="all")
    Path(asked["out"]).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(asked["out"], index=False, float_format="%.4g")
    varied = [c for c in table.columns if c in (*scores, "method", "seeds") or table[c].nunique(dropna=False) > 1]
    return str(table[varied].to_markdown(index=False, floatfmt=".3g"))


def _row(scores: Path) -> dict[str, object]:
    import pandas as pd

    cfg = OmegaConf.to_container(OmegaConf.load(scores.parent / "config.yaml"))
    frame = pd.read_parquet(scores)
    found = frame.groupby("perturbation", sort=False)[["asr", "utility"]].mean()
    row: dict[str, object] = {"method": cfg["method"]["name"], "seed": frame["seed"].iloc[0]}  # type: ignore[call-overload,index]
    given = flatten({part: cfg[part] for part in ("method", "refine")})  # type: ignore[call-overload,index]
    row |= {key: value for key, value in given if key not in ("method.name", "method.kind")}
    noisy = found["asr"].drop("none")
    row |= {f"{name} asr": value for name, value in noisy.items()}
    return row | {"mean asr": noisy.mean(), "clean asr": found["asr"]["none"], "utility": found["utility"]["none"]}
