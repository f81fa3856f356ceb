"""Choose a method, refine a model that comes aligned, prove that it got better, and write what can be shipped.

holdfast harden model=<Hub id, folder or GGUF file> out=<folder> [for=noise|nf4|q4_0|w4a8] [method=auto]

`for` names the deployment that the model is to withstand: what it is judged by, and what refinement takes its loss
under, weight noise or rounded weights. `method=auto` takes first order where its memory suffices, else the same on
low-rank adapters, else zeroth-order steps: along what alignment did, if `model.origin` names the model before it, or
on the most sensitive layers. Other overrides are those of study=harden. The result is shipped only if the ASR under
the deployment is lower, with its interval, and no guard is worse by more than its margin; otherwise the report says
so, and the exit status is 3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from holdfast.commands.own_model import OwnModel, parsed, run
from holdfast.errors import NotShown, UserError
from holdfast.methods.method import Scheme
from holdfast.models.load import fetched
from holdfast.runtime.devices import card_gib
from holdfast.runtime.files import read_frame, write_text
from holdfast.runtime.run import quiet
from holdfast.settings.compose import composed
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout

READS = ("data", "probe", "method", "refine", "perturb", "judge", "evaluate", "claims")
BASE = ("study=harden", "model=own")  # what all overrides come on top of
ALONG = "zo_alignment_subspace"  # the best without gradients; it needs the model before alignment
AUTO = ("fo_line_search", "fo_lora", ALONG, "zo_selective")  # the first that fits
LEAST = 32  # prompts of a label to train on, and to test on: with fewer no interval would show anything
BUILT_IN = "built_in_benign"
REPORT, FIGURE = "hardening.md", "before_after.png"
USAGE = "holdfast harden model=<Hub id, folder or GGUF file> out=<folder> for=<deployment>"


def main(arguments: list[str]) -> str:
    """Runs the study `harden` of the one model, resuming what an earlier call left; gives what to tell the user.

    Raises `NotShown` where the result is not better, or costs too much."""
    quiet()
    asked, overrides = parsed(arguments, ("model", "out", "for", "method"))
    for key in ("model", "out"):
        if not asked[key]:
            raise UserError(f"{key}: no value is given; {USAGE}")
    if chosen := next((o for o in overrides if o.startswith("study.methods=")), None):
        raise UserError(f"{chosen}: give method=<name>")
    out = Path(asked["out"]).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: is there and not empty; give a new folder")
    model = OwnModel.of(asked["model"])
    deployment, method = asked["for"] or "noise", asked["method"] or "auto"
    rounding = [f"refine.rounding={deployment}"] if deployment in get_args(Scheme) else []
    overrides = [f"study.name=harden-{model.name()}", *rounding, *model.overrides, *overrides]
    cfg = composed([*BASE, *overrides])
    family = _family(deployment, cfg)
    if method != "auto":
        composed([*BASE, *overrides, f"method={method}"])  # which says now if there is none such
    base = fetched(model.given, cfg.model.revision)  # one that is not to be had says so before anything is begun
    overrides = _with_prompts(overrides, cfg)
    method = _method(method, overrides, cfg)
    overrides += [f"study.methods=[{cfg.study.reference},{method}]"]
    cfg = composed([*BASE, *overrides])
    layout = Layout.of(cfg)
    run("harden", overrides, layout, [layout.tables / "main.md", layout.figures / FIGURE])  # what the card shows
    return _shipped(cfg, method, family, base, model, out)


def _family(deployment: str, cfg: Config) -> str:
    """The column of the main table that a deployment is judged by."""
    known = {"noise": "weights"} | {name.lower(): name for name in cfg.claims.families if name != "weights"}
    if deployment not in known:
        raise UserError(f"for={deployment}: choose one of {', '.join(known)}")
    return known[deployment]


def _with_prompts(overrides: list[str], cfg: Config) -> list[str]:
    """The overrides of a data set with enough prompts, which is made first of all: where the user's own files have too
    few benign ones, those that come along are added. Raises `NotShown` where there are too few all the same."""
    own = list(cfg.data.sources) == ["harmful", "benign"] and not any(o.startswith("source=") for o in overrides)
    if own and not Path(cfg.data.dir or ".", cfg.data.sources["benign"].file).exists():
        print(
            f"harden   {cfg.data.dir} has no {cfg.data.sources['benign'].file}; the built-in benign prompts are taken"
        )
        return _with_prompts([*overrides, f"source=[harmful,{BUILT_IN}]"], cfg)
    layout = Layout.of(cfg)
    run("harden", overrides, layout, [layout.data / "metrics.json"])
    counts = json.loads((layout.data / "metrics.json").read_text(encoding="utf-8"))
    parts = [f"{split}.{label}" for split in ("train", "test") for label in ("harmful", "benign")]
    few = {part: counts.get(part, 0) for part in parts if counts.get(part, 0) < LEAST}
    told = ", ".join(f"{count} in {part.replace('.', ' ')}" for part, count in few.items())
    if own and few and all(part.endswith("benign") for part in few):
        print(f"harden   too few prompts ({told}); the built-in benign ones are added")
        return _with_prompts([*overrides, f"source=[harmful,benign,{BUILT_IN}]"], cfg)
    if few:
        raise NotShown(f"too few prompts ({told}); {LEAST} in train and {LEAST} in test are needed of each label")
    return overrides


def _method(asked: str, overrides: list[str], cfg: Config) -> str:
    """The method that was asked for; of `auto` the first whose refinement fits into memory here."""
    if asked != "auto":
        return asked
    from holdfast.commands.plan import GIB, fits, jobs, memories
    from holdfast.settings.choices import choices_of

    for method in (method for method in AUTO if method != ALONG or cfg.model.origin):
        chosen = [*BASE, *overrides, f"study.methods=[{cfg.study.reference},{method}]", f"plan.gpu_gib={card_gib()}"]
        choices = choices_of([*chosen, "plan.flops=1", "plan.bandwidth=1"])  # of no interest: nothing is measured
        job = next(job for job in jobs(choices) if job.stage == "refine")
        if all(fits(job, gib) for gib in memories(choices.of(model=choices.models[0]))):
            return method
        print(f"harden   {method} would take {job.peak / GIB:.1f} GiB, which do not fit here")
    raise UserError("method=auto: no method fits into memory; holdfast plan study=harden says what would")


def _shipped(cfg: Config, method: str, family: str, base: Path, model: OwnModel, out: Path) -> str:
    """Decide by the records, write the report, and the folder if the model is better; gives what to tell."""
    from holdfast.commands.compare import Study, metrics_of
    from holdfast.models.card import Shown
    from holdfast.models.package import package
    from holdfast.reporting.decision import decision, report
    from holdfast.reporting.render import percent, points

    layout = Layout.of(cfg)
    metrics, setting, _ = metrics_of([Study(model.name(), layout, cfg)])
    decided = decision(metrics, setting, f"own/{cfg.align.name}", method, family)
    records = [read_frame(path) for path in layout.records(cfg.study)]
    numbers = report(decided, read_frame(layout.data / "prompts.parquet"), *records)
    write_text(layout.tables / REPORT, numbers)
    asr = decided.asr
    told = f"{asr.name}: {percent(asr.before)} → {percent(asr.after)} %, {points(asr.change)} points"
    if not decided.ships:
        raise NotShown(f"{told}; not shipped: {'; '.join(decided.against)}; {layout.tables / REPORT} has the numbers")
    table = (layout.tables / "main.md").read_text(encoding="utf-8")
    shown = Shown(decided.title, numbers, table, layout.figures / FIGURE)
    run = layout.refine("own", cfg.align.name, method, cfg.study.seeds[0])
    package(run, base, model.given, cfg, shown, out)
    return f"harden   {told}; wrote {out}"
