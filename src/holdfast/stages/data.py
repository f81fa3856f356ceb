"""Build every split's prompts, the tokenizer of a model made in the run, and the data card."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from holdfast.datasets import DataSet
from holdfast.errors import printable
from holdfast.runtime.run import Run, Stage

APART = 0.1  # of the benign prompts: as many may be of other sources in `test` than in `threshold`


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.datasets.tokens import train_tokenizer

    data = run.cfg.data
    rows, report = data.build(run.cfg.openings)
    frame = pd.DataFrame(rows)
    tokenizer = train_tokenizer((f"{r['prompt']} {r['response']}" for r in rows), data.vocabulary)
    run.save_table(frame, "prompts.parquet")
    tokenizer.save_pretrained(run.out / "tokenizer")
    counts = Counter(zip(frame["split"], frame["label"], strict=True))
    print(card_text(frame, data, report))
    if apart := sources_apart(frame):
        print(f"data     {apart}", file=sys.stderr)
    run.tracker.table("prompts", frame[frame["split"] != "pretrain"].groupby(["split", "label"]).head(5))
    metrics: dict[str, Any] = {f"{split}.{label}": count for (split, label), count in sorted(counts.items())}
    run.finish(metrics | report | {"vocabulary": len(tokenizer)}, f"{len(frame)} rows, vocabulary {len(tokenizer)}")


def card_text(frame: Any, data: DataSet, report: dict[str, Any]) -> str:
    """The data set's card: counts, the rule of the split, what was left out of which source, examples."""
    counts = frame.groupby(["split", "label"], sort=False).agg(
        rows=("id", "size"),
        pairs=("pair", "nunique"),
        with_rejected=("rejected", lambda answers: (answers != "").sum()),
        unanswered=("response", lambda answers: (answers == "").sum()),
    )
    examples = frame.groupby(["split", "label"], sort=False).head(1)
    lines = [f"# Data card: {data.kind}", "", counts.reset_index().to_markdown(index=False), ""]
    lines += [f"Split rule: {data.split_rule()}.", "", *_report_lines(report)]
    lines += [f"{apart}.", ""] if (apart := sources_apart(frame)) else []
    lines += [printable(f"- {e.split} / {e.label}: {e.prompt} -> {e.response}") for e in examples.itertuples()]
    return "\n".join(lines) + "\n"


def sources_apart(frame: Any) -> str:
    """What to know where benign prompts of `threshold` and `test` differ in their sources, in total variation, by more
    than `APART`; nothing where they do not."""
    benign = frame[frame["label"] == "benign"]
    shares = benign.groupby("split")["source"].value_counts(normalize=True).unstack(fill_value=0)
    far = (shares.loc["threshold"] - shares.loc["test"]).abs().sum() / 2
    if far <= APART:
        return ""
    mixes = {split: shares.loc[split][shares.loc[split] > 0] for split in ("threshold", "test")}
    said = (f"{split} has " + ", ".join(f"{s} {x:.0%}" for s, x in mix.items()) for split, mix in mixes.items())
    return (
        f"benign prompts are of other sources where the refusal threshold is set than where it is applied ({far:.0%}: "
        f"{'; '.join(said)}), so over-refusal may be another; give threshold and test the same shares of each source"
    )


def _report_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for what in ("duplicates", "near_duplicates"):
        if what in report:
            lines += [*_dropped(what.replace("_", "-").capitalize(), **report[what]), ""]
    for source, rows in report.get("left_out", {}).items():
        lines += [f"Left out of {source} by its filter: {rows} rows.", ""]
    for source, revision in report.get("revision", {}).items():
        lines += [f"Revision of {source}: {revision}.", ""]
    return lines


def _dropped(what: str, pairs: dict[str, int], examples: dict[str, str] | None = None, **kinds: int) -> list[str]:
    """How many rows by kind, and a line for each pair of source and split, with an example if there are any."""
    counts = ", ".join(f"{rows} {kind.replace('_', ' ')}" for kind, rows in kinds.items())
    shown = {pair: f", as {example}" for pair, example in (examples or {}).items()}
    return [f"{what} dropped: {counts}.", *(f"- {pair}: {rows}{shown.get(pair, '')}" for pair, rows in pairs.items())]


STAGE = Stage("data", run, ("data", "openings"), ())
main = STAGE.main
