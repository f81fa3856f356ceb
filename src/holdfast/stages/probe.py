"""Ask how much the alignment loss rises when one layer alone is perturbed, and what that does to the ASR."""

from __future__ import annotations

from typing import Any

from holdfast.models import load as models
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config
from holdfast.stages.answer import needed
from holdfast.stages.elicit import STAGE as ELICIT
from holdfast.stages.elicit import elicited, openings, taught


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.probing.probe import Probe
    from holdfast.probing.selection import rises

    model, tokenizer = models.load(run.layout.align(*run.names[:2], run.seed) / "model", run.cfg.model)
    said = openings(run, "loss") if run.cfg.probe.loss == "margin" else run.cfg.openings.loss
    settings, probe = run.cfg.probe, Probe(run, model, tokenizer, taught(run), said)
    # What layers are selected by comes first.
    found = [probe.weights(settings.sigma)]
    spent = probe.forwards
    found += [probe.weights(sigma) for sigma in settings.other_sigmas]
    found += [getattr(probe, kind)() for kind in settings.compare]
    online, online_forwards = probe.online()
    run.save_table(_named(run, pd.concat(found, ignore_index=True)), "sensitivity.parquet")
    run.save_table(_named(run, online), "online.parquet")
    run.save_table(_named(run, probe.outcomes()), "outcomes.parquet")
    groups = [group for group in found[0]["group"].unique() if group != "all"]
    means = dict(zip(groups, rises(found[0], groups).mean((0, 1)).tolist(), strict=True))
    for place, (group, mean) in enumerate(means.items()):
        run.tracker.log({"group": place, f"sensitivity/{group}": mean})
    top = max(means, key=lambda group: means[group])
    rows = settings.batch_size * probe.batches.sequences, settings.online.batch_size * probe.batches.sequences
    sequences = {"probe": round(spent * rows[0]), "online": online_forwards * rows[1]}
    metrics = {"sensitivity": means, "sequences": sequences, "draws": {"made": probe.drawn, "of": probe.all}}
    spared = f"; {1 - probe.drawn / probe.all:.0%} of the draws not needed" if probe.drawn < probe.all else ""
    run.finish(metrics, f"most sensitive: {top} (+{means[top]:.3f}){spared}")


def _named(run: Run, frame: Any) -> Any:
    """With columns in front that say what was probed."""
    for place, (column, value) in enumerate({**run.names._asdict(), "seed": run.seed}.items()):
        frame.insert(place, column, value)
    return frame.drop(columns="method")


def inputs(cfg: Config) -> models.Inputs:
    return {**models.aligned_inputs(cfg), **needed(cfg), **elicited(cfg)}


READS = ("model", "data", "probe", "elicit", "openings")
STAGE = Stage("probe", run, READS, ("model", "align", "seed"), inputs, ELICIT, shares=True)
main = STAGE.main
