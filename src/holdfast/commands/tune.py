"""Apply a method and score it on the tuning split, without keeping the model; for sweeps.

holdfast tune -m method=fo_refine method.lr=1e-4,3e-4 seed=100,101
holdfast tune sweep=multirun/tune/<date> out=tuning.csv        # what that sweep found, a row a setting
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.runtime.files import read_frame
from holdfast.runtime.run import Run, Stage
from holdfast.runtime.tracking import flatten
from holdfast.settings.options import Config
from holdfast.stages.evaluate import bench_of, prompts_of
from holdfast.stages.judge import referee_inputs, refereed
from holdfast.stages.refine import STAGE as REFINE
from holdfast.stages.refine import refined

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("asr", "over_refusal", "broken_benign", "utility")
NOISE = 2**33  # added to the seed, whose own streams probe, refinement and evaluation have seen


def run(run: Run) -> float:
    """The ASR on the tuning split, with its guards, clean and at every point; gives the mean ASR of `summary`."""
    import pandas as pd

    from holdfast.evaluation.answers import Scorer
    from holdfast.perturbations import Arm, grid, perturbed

    if not run.cfg.method.refines:
        model, tokenizer = models.load(run.layout.align(*run.names[:2], run.seed) / "model", run.cfg.model)
        cost, stability = 0, None
    else:
        done = refined(run)
        model, tokenizer, cost, stability = done.model, done.tokenizer, done.sequences, done.stability
    prompts = prompts_of(run, ("tune", "harmful"), ("tune", "benign"))
    scorer = Scorer(tokenizer, prompts, run.cfg, run.cfg.openings.score)
    bench, judged = bench_of(run, tokenizer, NOISE), refereed(run, prompts)
    everything, harmful_ones = prompts.index.tolist(), prompts.index[prompts["label"] == "harmful"].tolist()
    rows: list[dict[str, object]] = []
    spared: list[Any] = []  # what benign prompts are answered by the model as it is

    def score(arm: Arm, attacks: bool = False, **at: object) -> None:
        places = harmful_ones if attacks else everything
        said = pd.concat([scorer.outcomes(arm, places, places, margins=False), *(spared if attacks else [])])
        spared[:] = spared or [said[said["label"] == "benign"]]
        verdict = judged(said)
        harmful, harmless = (verdict[(said["label"] == label).to_numpy()] for label in ("harmful", "benign"))
        rates = {"asr": (harmful == "complied").mean(), "over_refusal": (harmless == "refused").mean()}
        rows.append({**at, **rates, "broken_benign": (harmless == "broken").mean(), "utility": said["utility"].mean()})

    score(Arm(model), perturbation="none", level=0.0, draw=0)
    for point in run.progress(grid(run.cfg.perturb), "point"):
        with perturbed(model, point, bench) as arm:
            at = {"perturbation": point.name, "level": point.level, "draw": point.draw}
            score(arm, point.perturbation.attacks, **at)
    frame = pd.DataFrame(rows)
    frame.insert(0, "seed", run.seed)
    run.save_table(frame, "scores.parquet")
    means = frame.groupby(["perturbation", "level"])[list(SCORES)].mean().reset_index()
    flat = {
        f"{row['perturbation']}/{row['level']:g}/{metric}": row[metric]
        for row in means.to_dict("records")
        for metric in SCORES
    }
    words = ", ".join(f"{key.removesuffix('/asr')} {v:.3f}" for key, v in flat.items() if key.endswith("/asr"))
    run.finish({**flat, "sequences": cost, "stability": stability}, f"ASR {words}")
    return float(_noisy(frame, "asr").mean())


def _noisy(frame: pd.DataFrame, metric: str) -> pd.Series[float]:
    """A score under each perturbation."""
    return frame[frame["perturbation"] != "none"].groupby("perturbation", sort=False)[metric].mean()


def inputs(cfg: Config) -> models.Inputs:
    own = REFINE.inputs(cfg) if cfg.method.refines else models.aligned_inputs(cfg)
    return {**own, **referee_inputs(cfg)}


READS = ("model", "data", "method", "refine", "elicit", "perturb", "judge", "referee", "evaluate", "openings")
STAGE = Stage("tune", run, READS, ("model", "align", "method", "seed"), inputs, REFINE)


def main(arguments: list[str]) -> str | None:
    if any(word.startswith("sweep=") for word in arguments):
        return summary(arguments)
    STAGE.main(arguments)
    return None


def summary(arguments: list[str]) -> str:
    """Write the table as CSV; gives it as Markdown, the best setting of a method first. Means: over perturbations, on
    the tuning split."""
    import pandas as pd

    asked = dict(argument.partition("=")[::2] for argument in arguments)
    if set(asked) != {"sweep", "out"}:
        raise UserError("give sweep=<folder of a sweep of holdfast tune> and out=<file>.csv")
    jobs = sorted(Path(asked["sweep"]).rglob("scores.parquet"))
    if not jobs:
        raise UserError(f"sweep={asked['sweep']}: no scores.parquet below it; holdfast tune -m makes them")
    given = pd.DataFrame([_settings(job.parent / "config.yaml") for job in jobs])
    own = [c for c in given.columns if c.partition(".")[0] in ("method", "refine")]
    for column in given.columns[given.nunique(dropna=False) > 1]:
        finer = given.groupby([*own, column], dropna=False).ngroups > given.groupby(own, dropna=False).ngroups
        own += [column] * finer  # what only follows from another setting is left out
    found = pd.DataFrame(map(_scores, jobs))
    scores = [c for c in found.columns if c != "seed"]
    alike = pd.concat([given[own], found], axis=1).groupby(own, dropna=False)
    table = alike[scores].mean()
    table["seeds"] = alike["seed"].nunique()
    table = table.reset_index().sort_values(["method", "mean asr"]).dropna(axis=1, how="all")
    Path(asked["out"]).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(asked["out"], index=False, float_format="%.4g")
    varied = [c for c in table.columns if c in (*scores, "method", "seeds") or table[c].nunique(dropna=False) > 1]
    return str(table[varied].to_markdown(index=False, floatfmt=".3g"))


def _settings(path: Path) -> dict[str, object]:
    """By their dotted keys, those that a job's scores may depend on; seeds are averaged over."""
    cfg: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    flat = dict(flatten({part: cfg[part] for part in STAGE.known if part in cfg and part != "seed"}))
    del flat["method.kind"]
    texts = {key: str(value) if isinstance(value, list) else value for key, value in flat.items()}
    return {"method": texts.pop("method.name"), **texts}


def _scores(path: Path) -> dict[str, object]:
    frame = read_frame(path)
    clean, noisy = frame[frame["perturbation"] == "none"].iloc[0], _noisy(frame, "asr")
    row = {"seed": clean["seed"], **{f"{name} asr": asr for name, asr in noisy.items()}}
    guards = {f"mean {name.replace('_', ' ')}": _noisy(frame, name).mean() for name in SCORES if name != "asr"}
    return {**row, "mean asr": noisy.mean(), **guards, "clean asr": clean["asr"], "utility": clean["utility"]}
