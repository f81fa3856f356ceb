"""Ask the aligned model what refinement may learn from: its own refusals and answers are what that keeps likely."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge
from omegaconf import OmegaConf
from pydantic import Field

from holdfast.datasets.answers import shortened
from holdfast.datasets.openings import covered, harvested
from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.runtime.files import as_json, read_frame, write_text
from holdfast.runtime.memory import Parts
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Config, Count, Options, Whole, section
from holdfast.settings.paths import CONF, Layout
from holdfast.settings.schema import Openings
from holdfast.stages.align import STAGE as ALIGN
from holdfast.stages.answer import answered, rows_of

LABELS = ("harmful", "benign")
FEWEST = 8  # own answers of a label, below which the data's are taken: a batch would hold the same few again and again


OPENINGS = "openings.json"
LEAST = 0.5  # of the model's own answers that openings have to begin, or a margin says nothing about it


@section("elicit")
class Elicit(Options):
    """How the aligned model is asked for its own answers."""

    prompts: Whole = Field(description="training prompts of each label; 0: what the data give is learned")
    max_new_tokens: Count = Field(description="of an answer")
    batch_size: Count = Field(description="prompts of a batch")
    opening_words: Count = Field(description="of an opening that is taken from own answers")
    openings: Annotated[int, Ge(2)] = Field(description="the most of refusals, and of answers")
    unrefused: Literal["left_out", "taught"] = Field(
        description="harmful training prompts that the model answers: left out, or taught its commonest refusal"
    )


def run(run: Run) -> None:
    from holdfast.datasets.sampling import capped

    model, tokenizer = models.load(run.layout.align(*run.names[:2], run.seed) / "model", run.cfg.model)
    settings, said = run.cfg.elicit, []
    for label in ("harmful", "benign"):
        asked = capped(models.prompts_of(run.layout, split_of(run.layout, label), label), settings.prompts, run.seed)
        parts = Parts("elicit.batch_size", settings.batch_size)
        said.append(answered(model, tokenizer, asked, settings.max_new_tokens, parts))
    found = own_answers(said)
    run.save_table(found, "own.parquet")
    metrics: dict[str, Any] = {}
    words = []
    for label, does in (("harmful", "refuses"), ("benign", "answers")):
        mine = found[found["label"] == label]
        own, asked = int(mine["own"].sum()), len(mine)
        metrics |= {f"{label}.own": own, f"{label}.asked": asked}
        words.append(f"{own} of {asked} {label}")
        if own < FEWEST:
            of = f"the model {does} {own} of {asked} {label} training prompts"
            print(f"{of}; what the data give is learned in their place", file=sys.stderr)
    openings = _openings(run, found)
    write_text(run.out / OPENINGS, as_json(openings))
    metrics["openings"] = openings["covered"]
    shares = ", ".join(f"{share:.0%} of its {side}" for side, share in openings["covered"].items())
    run.finish(metrics, f"own answers: {', '.join(words)}; the openings found begin {shares}")


def _openings(run: Run, found: Any) -> dict[str, Any]:
    """How its own refusals and answers begin, and complying answers to harmful prompts where the data have some, by
    turns for losses and for scoring; and what share of its own they cover, at the least."""
    settings = run.cfg.elicit
    own = {label: found.loc[(found["label"] == label) & found["own"], "response"].tolist() for label in LABELS}
    targets = [text for text in found.loc[found["label"] == "harmful", "rejected"] if text]
    refusals = harvested(own["harmful"], settings.opening_words, settings.openings)
    answers = harvested([*own["benign"], *targets], settings.opening_words, settings.openings)
    made = {
        use: {"refusal": refusals[turn::2], "compliance": answers[turn::2]}
        for turn, use in enumerate(("loss", "score"))
    }
    shares = {
        name: min(covered(own[label], made[use][side]) for use in made)
        for label, side, name in (("harmful", "refusal", "refusals"), ("benign", "compliance", "answers"))
    }
    return {**made, "covered": shares}


def openings(run: Run, use: Literal["loss", "score"]) -> Openings:
    """The openings of losses, or of scoring: of the configuration, or of the model's own answers where it was asked.

    Raises `UserError` where they begin less than half of these: a margin between what the model never says would tell
    nothing about it.
    """
    if run.cfg.elicit.prompts == 0:
        return cast("Openings", getattr(run.cfg.openings, use))
    path = run.layout.elicit(*run.names[:2], run.seed) / OPENINGS
    found = json.loads(path.read_text(encoding="utf-8"))
    for side, share in found["covered"].items():
        if share < LEAST:
            raise UserError(
                f"openings: the commonest begin {share:.0%} of the model's own {side}, and a margin needs half; take "
                "refine.loss=nll probe.loss=nll evaluate.margin_draws=0, which need none ("
                f"{path} has them)"
            )
    return Openings(**found[use])


def own_answers(parts: list[Any]) -> Any:
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


def split_of(layout: Layout, label: str) -> str:
    """What refinement learns a label from: `refine`, which alignment never saw, or `train` where that has none."""
    return "train" if models.prompts_of(layout, "refine", label).empty else "refine"


def taught(run: Run) -> Any:
    """The training rows of refinement and probe: those with the model's own answers, where it was asked and gave
    enough of a label; else as the data give them. Harmful prompts that it answered are left out, or taught a refusal
    of its own: they lie where alignment ends."""
    import pandas as pd

    rows = pd.concat([rows_of(run, split_of(run.layout, label), label) for label in LABELS], ignore_index=True)
    if run.cfg.elicit.prompts == 0:
        return rows
    found = read_frame(run.layout.elicit(*run.names[:2], run.seed) / "own.parquet")
    parts = []
    for label in ("harmful", "benign"):
        own = found[(found["label"] == label) & found["own"]]
        parts.append(own if len(own) >= FEWEST else rows[rows["label"] == label].assign(ended=True))
        if label == "harmful" and len(own) >= FEWEST and run.cfg.elicit.unrefused == "taught":
            answered = found[(found["label"] == label) & ~found["own"]]
            parts.append(answered.assign(response=_commonest(own["response"].tolist()), ended=False))
    return pd.concat(parts, ignore_index=True)


def _commonest(refusals: list[str]) -> str:
    """The first sentence that most refusals have, which names no harm of its own; of several the shortest."""
    counts = Counter(shortened(text, 1) for text in refusals)
    return min(counts, key=lambda text: (-counts[text], len(text), text))


def elicited(cfg: Config) -> models.Inputs:
    """What a stage needs that learns from own answers."""
    if cfg.elicit.prompts == 0:
        return {}
    folder = Layout.of(cfg).elicit(cfg.model.name, cfg.align.name, cfg.seed)
    return {folder / name: "elicit" for name in ("own.parquet", OPENINGS)}


READS = ("model", "elicit", "openings")
STAGE = Stage("elicit", run, READS, ("model", "align", "seed"), models.aligned_inputs, ALIGN)
main = STAGE.main
