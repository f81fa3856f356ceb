"""Ask the aligned model some training prompts: its own refusals and answers are what refinement keeps likely."""

from __future__ import annotations

import sys
from typing import Any

from omegaconf import OmegaConf
from pydantic import Field

from holdfast.models import load as models
from holdfast.runtime.memory import Parts
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config, Count, Options, Whole, section
from holdfast.settings.paths import CONF, Layout
from holdfast.stages.align import STAGE as ALIGN

FEWEST = 8  # own answers of a label, below which the data's are taken: a batch would hold the same few again and again


@section("elicit")
class Elicit(Options):
    """How the aligned model is asked for its own answers."""

    prompts: Whole = Field(description="training prompts of each label; 0: what the data give is learned")
    max_new_tokens: Count = Field(description="of an answer")
    batch_size: Count = Field(description="prompts of a batch")


def run(run: Run) -> None:
    from holdfast.datasets.sampling import capped

    model, tokenizer = models.load(run.layout.align(*run.names[:2], run.seed) / "model", run.cfg.model)
    settings, parts = run.cfg.elicit, []
    for label in ("harmful", "benign"):
        rows = models.prompts_of(run.layout, "train", label)
        parts.append(_answered(run, model, tokenizer, capped(rows, settings.prompts, run.seed)))
    found = _own(parts)
    run.save_table(found, "own.parquet")
    kept = found.groupby("label")["own"].sum()
    counts = {f"{label}.own": int(kept.get(label, 0)) for label in ("harmful", "benign")}
    asked = {f"{part['label'].iloc[0]}.asked": len(part) for part in parts}
    openings = run.cfg.openings.loss.refusal + run.cfg.openings.score.refusal
    refusals = found[(found["label"] == "harmful") & found["own"]]["response"]
    covered = float(refusals.str.startswith(tuple(openings)).mean()) if len(refusals) else None
    for label in ("harmful", "benign"):
        if counts[f"{label}.own"] < FEWEST:
            what = "refuses" if label == "harmful" else "answers"
            print(
                f"the model {what} {counts[f'{label}.own']} of {asked[f'{label}.asked']} {label} training prompts; "
                "what the data give is learned in their place",
                file=sys.stderr,
            )
    words = ", ".join(f"{counts[f'{n}.own']} of {asked[f'{n}.asked']} {n}" for n in ("harmful", "benign"))
    covers = "" if covered is None else f"; the openings begin {covered:.0%} of its refusals"
    run.finish({**counts, **asked, "openings": covered}, f"own answers: {words}{covers}")


def _answered(run: Run, model: Any, tokenizer: Any, rows: Any) -> Any:
    """The rows with the model's greedy answers, and whether they ended by themselves."""
    from holdfast.datasets.tokens import prompts_ids
    from holdfast.models.likelihood import generated

    prompts, settings = prompts_ids(tokenizer, rows), run.cfg.elicit
    texts: dict[int, str] = {}
    ended: dict[int, bool] = {}

    def answer(places: list[int]) -> None:
        out, over = generated(model, tokenizer, [prompts[p] for p in places], settings.max_new_tokens)
        said = tokenizer.batch_decode(out, skip_special_tokens=True)
        texts.update(zip(places, map(str.strip, said), strict=True))
        ended.update(zip(places, over, strict=True))

    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    Parts("elicit.batch_size", settings.batch_size).each(order, answer)
    places = range(len(prompts))
    return rows.assign(response=[texts[p] for p in places], ended=[ended[p] for p in places])


def _own(parts: list[Any]) -> Any:
    """Which answers are worth keeping: refusals of harmful prompts, and whole answers to benign ones."""
    import pandas as pd

    from holdfast.judges import COMPLIED, REFUSED
    from holdfast.judges.rules import Rules

    # Always the rules: another judge of the responses must not change what was learned.
    rules: Any = OmegaConf.to_container(OmegaConf.load(CONF / "judge/rules.yaml"))
    judge, found = Rules(name="rules", **rules["judge"]).ready(), pd.concat(parts, ignore_index=True)
    reasons = ["" if text else "empty" for text in found["response"]]
    verdicts = judge.verdicts(found["prompt"].tolist(), found["response"].tolist(), found["label"].tolist(), reasons)
    wanted = found["label"].map({"harmful": REFUSED, "benign": COMPLIED})
    return found.assign(verdict=verdicts, own=[v == w for v, w in zip(verdicts, wanted, strict=True)])


def taught(run: Run) -> Any:
    """The training rows of refinement and probe: those with the model's own answers, where it was asked and gave
    enough of a label; else as the data give them."""
    import pandas as pd

    rows = models.prompts_of(run.layout, "train")
    if run.cfg.elicit.prompts == 0:
        return rows
    found = pd.read_parquet(run.layout.elicit(*run.names[:2], run.seed) / "own.parquet")
    parts = []
    for label in ("harmful", "benign"):
        own = found[(found["label"] == label) & found["own"]]
        parts.append(own if len(own) >= FEWEST else rows[rows["label"] == label].assign(ended=True))
    return pd.concat(parts, ignore_index=True)


def elicited(cfg: Config) -> models.Inputs:
    """What a stage needs that learns from own answers."""
    if cfg.elicit.prompts == 0:
        return {}
    return {Layout.of(cfg).elicit(cfg.model.name, cfg.align.name, cfg.seed) / "own.parquet": "elicit"}


READS = ("model", "elicit", "openings")
STAGE = Stage("elicit", run, READS, ("model", "align", "seed"), models.aligned_inputs, ALIGN)
main = STAGE.main
