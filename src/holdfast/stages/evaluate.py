"""Ask one checkpoint under every perturbation of the grid: one row per prompt and point, judged afterwards."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.runtime import ranks
from holdfast.runtime.files import code_digest
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout
from holdfast.settings.schema import Openings
from holdfast.stages.answer import needed, rows_of
from holdfast.stages.elicit import elicited, openings
from holdfast.stages.refine import STAGE as REFINE

if TYPE_CHECKING:
    from holdfast.evaluation.answers import Scorer
    from holdfast.evaluation.journal import Journal
    from holdfast.perturbations import Bench, Point

NOISE = 2**32  # added to the seed, whose own streams the probe and the refinement have seen
SPLITS = (("test", "harmful"), ("test", "benign"), ("threshold", "benign"))


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.evaluation.answers import Scorer
    from holdfast.evaluation.journal import Journal
    from holdfast.models.distance import distances
    from holdfast.statistics.rates import summarized

    folder = run.layout.checkpoint(*run.names, run.cfg.method.refines, run.seed) / "model"
    model, tokenizer = models.load(folder, run.cfg.model)
    prompts = asked(run)
    scorer, bench = Scorer(tokenizer, prompts, run.cfg, scored_by(run)), bench_of(run, tokenizer, NOISE)
    journal = Journal(run.out / "points", _context(run, prompts, folder))
    wanted = parts(run.cfg, prompts)

    def ask(clean: Any, place: int) -> Any:
        return _answered(scorer, model, wanted[place], bench, clean)

    _fill(journal, len(wanted), ask, run)
    if not ranks.first():
        return
    answers = pd.concat([journal.get(place) for place in range(len(wanted))], ignore_index=True)
    for at, (column, value) in enumerate({**run.names._asdict(), "seed": run.seed}.items()):
        answers.insert(at, column, value)
    run.save_table(answers, "answers.parquet")
    metrics: dict[str, Any] = {**summarized(answers.assign(verdict=None)), "answers": len(answers)}
    metrics |= distances(run)
    if run.cfg.evaluate.tasks:
        metrics["tasks"] = _tasks(run.cfg, model, tokenizer, bench)
    journal.close()
    responses = int(answers["response"].notna().sum())
    run.finish(metrics, f"{responses} responses")


def _fill(journal: Journal, count: int, ask: Callable[[Any, int], Any], run: Run) -> None:
    """Ask what the journal does not have, one point a rank at a time. The answers of the unperturbed model, which is
    point 0, come first, for other points may repeat them."""
    from holdfast.zo.parallel import shared_out

    size = ranks.launched()[1]
    there = ranks.from_first(lambda: [journal.has(place) for place in range(count)])
    missing = [place for place in range(1, count) if not there[place]]
    rounds = [[] if there[0] else [0], *(missing[at : at + size] for at in range(0, len(missing), size))]
    clean: Any = None
    for places in run.progress(rounds, "point"):
        for place, frame in zip(places, shared_out(places, functools.partial(ask, clean)), strict=True):
            journal.keep(place, frame)
        clean = ranks.from_first(lambda: journal.get(0)) if clean is None else clean


def scored_by(run: Run) -> Openings:
    """The openings that margins are scored with; where none are taken, those of the configuration."""
    return openings(run, "score") if run.cfg.evaluate.margin_draws else run.cfg.openings.score


@dataclass(frozen=True)
class Part:
    """What is asked at once: a point, None for the unperturbed model, and places of prompts; those `answered` are
    among them."""

    point: Point | None
    asked: list[int]
    answered: list[int]
    margins: bool


def parts(cfg: Config, prompts: Any) -> list[Part]:
    """The clean model and every draw of the grid on the test prompts, and margins of the threshold prompts beside
    them where margins are taken. Then the tuning prompts, where there are any, at draws that nothing is tested on."""
    from holdfast.perturbations import Point, grid

    test, threshold, tune = (
        prompts.index[prompts["split"] == split].tolist() for split in ("test", "threshold", "tune")
    )
    scored = cfg.evaluate.margin_draws > 0
    found = [Part(None, test + threshold * scored, test, scored)]
    for point in grid(cfg.perturb):
        margins = point.draw < cfg.evaluate.margin_draws
        if margins or point.generate:
            found.append(Part(point, test + threshold * margins, test * point.generate, margins))
    for name, p in cfg.perturb.items() if tune else ():
        for level in p.levels:
            if p.generate is None or level in p.generate:
                found += [
                    Part(Point(name, p, level, draw), tune, tune, False)
                    for draw in p.tuning(level, cfg.evaluate.tune_draws)
                ]
    return found


def asked(run: Run) -> Any:
    """The prompts of the evaluation. Headline levels are chosen on the tuning split of the unrefined model, so only
    there is it scored."""
    splits = SPLITS[: 3 if run.cfg.evaluate.margin_draws else 2]  # thresholds are of margins
    return prompts_of(run, *splits, *([("tune", "harmful")] if not run.cfg.method.refines else []))


def prompts_of(run: Run, *parts: tuple[str, str]) -> Any:
    """Prompts of splits and labels, no more than the configuration's caps."""
    import pandas as pd

    from holdfast.datasets.sampling import capped

    caps, seed = run.cfg.evaluate.prompts, run.cfg.evaluate.seed
    each = [capped(rows_of(run, *part), caps.get("/".join(part)), seed) for part in parts]
    return pd.concat(each, ignore_index=True)


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


def _answered(scorer: Scorer, model: Any, part: Part, bench: Bench, clean: Any) -> Any:
    """The answers of one part; those of the unperturbed model are `clean` for all others."""
    import pandas as pd

    from holdfast.perturbations import Arm, perturbed
    from holdfast.statistics.margins import check_finite

    point = part.point
    if point is None:
        found = scorer.outcomes(Arm(model), part.asked, part.answered, part.margins)
        if part.margins:
            check_finite(found["margin"].to_numpy(), "margins of the unperturbed model")
        return found.assign(perturbation="none", family="clean", level=0.0, draw=0, ran="")
    chosen = part.asked
    if point.perturbation.attacks:
        chosen = [place for place in chosen if scorer.frame.at[place, "label"] == "harmful"]
    with perturbed(model, point, bench) as arm:
        found = scorer.outcomes(arm, chosen, part.answered, part.margins)
    if part.margins:
        check_finite(found["margin"].to_numpy(), f"margins at {point.name} {point.level:g}, draw {point.draw}")
    if spared := sorted({*part.asked} - {*chosen}):  # answered as if nothing had happened
        same = clean.set_index("id").loc[scorer.frame.loc[spared, "id"]].reset_index()
        same = same.set_index(pd.Index(spared))[found.columns]
        if not part.answered:
            same = same.assign(response=None, ended=None)
        found = pd.concat([found, same]).sort_index()
    at = {"perturbation": point.name, "family": point.family, "level": point.level, "draw": point.draw}
    return found.assign(**at, ran=point.perturbation.ran(model.device.type))


def _tasks(cfg: Config, model: Any, tokenizer: Any, bench: Bench) -> dict[str, float]:
    """`<task>/<metric>` of the unperturbed model -> score, `<task>/<metric>@<name>/<level>` of one at a point."""
    from holdfast.evaluation.harness import harness
    from holdfast.evaluation.options import task_points
    from holdfast.perturbations import perturbed

    e = cfg.evaluate
    given = e.tasks, e.task_limit, e.batch_size, e.task_folder
    found, points = harness(model, tokenizer, *given), task_points(cfg)
    for at in e.tasks_at:
        with perturbed(model, points[at], bench) as arm:
            found |= {f"{key}@{at}": value for key, value in harness(arm.model, tokenizer, *given).items()}
    return found


def bench_of(run: Run, tokenizer: Any, noise: int) -> Bench:
    """Training rows for the perturbations that need some, and noise of its own."""
    from holdfast.datasets.tokens import prompts_ids, response_ids
    from holdfast.perturbations import Bench

    yes = run.cfg.openings.loss.compliance[0]
    places = {"benign": ("train", "benign"), "other": ("tune", "benign"), "attack": ("threshold", "harmful")}

    @functools.cache  # several points ask for the same rows
    def training(rows: str) -> list[tuple[list[int], list[int]]]:
        found = rows_of(run, *places[rows])
        attack = rows == "attack"
        answers = [r.rejected or yes for r in found.itertuples()] if attack else found["response"]
        return [
            (prompt, response_ids(tokenizer, answer, end=not attack))
            for prompt, answer in zip(prompts_ids(tokenizer, found), answers, strict=True)
            if answer
        ]

    return Bench(noise + run.seed, tokenizer.pad_token_id, training, run.cfg.evaluate.batch_size)


def inputs(cfg: Config) -> models.Inputs:
    if cfg.evaluate.tasks and importlib.util.find_spec("lm_eval") is None:  # not after hours of evaluation
        raise UserError("evaluate.tasks: lm-eval is not installed; pip install 'holdfast[eval]'")
    made = Layout.of(cfg).checkpoint(cfg.model.name, cfg.align.name, cfg.method.name, cfg.method.refines, cfg.seed)
    return {
        **models.data_inputs(cfg),
        **needed(cfg),
        **(elicited(cfg) if cfg.evaluate.margin_draws else {}),
        made / "metrics.json": "refine" if cfg.method.refines else "align",
    }


READS = ("model", "data", "method", "perturb", "evaluate", "elicit", "openings")
STAGE = Stage("evaluate", run, READS, ("model", "align", "method", "seed"), inputs, REFINE, shares=True)
main = STAGE.main
