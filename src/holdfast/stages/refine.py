"""Refine one aligned model by one method, at the common budget."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from holdfast.errors import UserError
from holdfast.methods.method import LOSSES, Select
from holdfast.models import load as models
from holdfast.runtime import ranks
from holdfast.runtime.files import code_digest, read_frame
from holdfast.runtime.memory import peak_memory
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config
from holdfast.settings.paths import Layout
from holdfast.stages.answer import needed as own
from holdfast.stages.elicit import elicited, openings, taught
from holdfast.stages.probe import STAGE as PROBE


@dataclass(frozen=True)
class Refined:
    """A refined model, what it took, and how it was chosen; `stability`: the share of redraws of the probe's examples
    and draws that choose the same layers, None where no probe chooses."""

    model: Any
    tokenizer: Any
    layers: list[str]
    stability: float | None
    losses: list[float]
    forwards: int
    sequences: int
    timing: dict[str, float]
    told: dict[str, Any]


def run(run: Run) -> None:
    done = refined(run)
    if not ranks.first():
        return
    models.save(done.model, done.tokenizer, run.out)
    keys = ("layers", "stability", "losses", "forwards", "sequences")
    metrics = {key.replace("losses", "loss"): getattr(done, key) for key in keys} | done.told
    on = ", ".join(done.layers)
    if done.stability is not None:
        on += f" (chosen again in {done.stability:.0%} of the probe's redraws)"
    moved = f"loss {done.losses[0]:.3f} to {done.losses[-1]:.3f}" if done.losses else "no loss asked"
    run.finish(metrics, f"{moved} on {on}", done.timing)


def refined(run: Run) -> Refined:
    """Load the aligned model and apply the method to it."""
    from holdfast.methods.batches import Batches
    from holdfast.methods.task import Task
    from holdfast.perturbations.rounding import AS_SHIPPED

    settings, method, loss = run.cfg.refine, run.cfg.method, LOSSES[run.cfg.refine.loss]
    if not method.refines:
        raise UserError(f"method={method.name} leaves the aligned model as it is; there is nothing to refine")
    model, tokenizer = models.load(run.layout.align(*run.names[:2], run.seed) / "model", run.cfg.model)
    said = openings(run, "loss") if loss is LOSSES["margin"] else run.cfg.openings.loss
    batches = Batches(taught(run), tokenizer, said, loss, model.device, settings.beta)
    layers, stability = selected_layers(model, method.select, run)
    context = {"refine": settings.model_dump(), "method": method.model_dump(), "tokens": batches.digest()}
    context["code"] = code_digest("zo", "methods", "models", "datasets")
    task = Task(
        model,
        loss,
        batches,
        layers,
        method.budget(settings),
        settings.batch_size,
        run.seed,
        context,
        lambda: models.load(models.origin_of(run.cfg.model, run.names.recipe, run.layout), run.cfg.model)[0],
        run.out / "trajectory.jsonl",
        method.of and run.layout.refine(*run.names[:2], method.of, run.seed) / "trajectory.jsonl",
        run.progress,
        run.tracker.log,
        method.select.parameters,
        AS_SHIPPED,
    )
    ranks.same_file(task.trajectory)
    started = time.perf_counter()
    with peak_memory() as peak:
        reference = batches.refer(model, settings.batch_size) if loss is LOSSES["dpo"] else 0
        outcome = method.refine(task)
    forwards = outcome.forwards + reference
    timing = {"method_seconds": time.perf_counter() - started, "method_peak_mib": peak.mib}
    sequences = forwards * settings.batch_size * batches.sequences
    return Refined(model, tokenizer, layers, stability, outcome.losses, forwards, sequences, timing, outcome.told)


def selected_layers(model: Any, select: Select, run: Run) -> tuple[list[str], float | None]:
    """The groups that the rule names, and how stable that choice is; a random choice is the seed's own."""
    import random

    from holdfast.probing.selection import chosen_by, ranked, stability
    from holdfast.zo import weight_groups
    from holdfast.zo.layers import decoder_layers

    groups = weight_groups(model)
    layers = decoder_layers(groups)
    if select.rule in ("all", "everything"):
        return list(groups) if select.rule == "everything" else layers, None
    if select.k > len(layers):
        raise UserError(f"method.select.k={select.k}: the model has {len(layers)} decoder layers")
    if select.rule == "random_k":
        return sorted(random.Random(run.seed).sample(layers, select.k), key=layers.index), None
    folder = run.layout.probe(*run.names[:2], run.seed)
    found = read_frame(folder / ("online.parquet" if select.by == "online" else "sensitivity.parquet"))
    if found.empty:
        raise UserError(f"method.select.by={select.by}: {folder} holds none; set probe.online.steps above 0")
    most = select.rule == "top_k"
    if select.by != "online":
        draws = chosen_by(found).groupby("group", observed=True)["draw"].nunique()
        whole = int((draws[layers] == draws.max()).sum())
        if whole < (select.k if most else len(layers)):
            raise UserError(
                f"method.select.k={select.k}: the probe drew {whole} of {len(layers)} layers to the end; set "
                f"probe.keep={select.k if most else 'null'}"
            )
    chosen = ranked(found, layers, most)[: select.k]
    return sorted(chosen, key=layers.index), stability(found, layers, select.k, most)


def inputs(cfg: Config) -> models.Inputs:
    ranks.refuse(f"method={cfg.method.name}", cfg.method.shares)
    needed = {**models.aligned_inputs(cfg), **own(cfg), **elicited(cfg)}
    layout, names = Layout.of(cfg), (cfg.model.name, cfg.align.name)
    if cfg.method.select.probed:
        needed[layout.probe(*names, cfg.seed) / "metrics.json"] = "probe"
    if cfg.method.of:
        needed[layout.refine(*names, cfg.method.of, cfg.seed) / "metrics.json"] = "refine"
    return needed


READS = ("model", "data", "method", "refine", "elicit", "openings")
STAGE = Stage("refine", run, READS, ("model", "align", "method", "seed"), inputs, PROBE, shares=True)
main = STAGE.main
