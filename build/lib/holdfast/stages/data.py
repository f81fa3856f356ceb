"""Build every split's prompts, the tokenizer of a model made in the run, and the data card."""

from __future__ import annotations

from collections import Counter
from typing import Any

from holdfast.datasets import DataSet
from holdfast.runtime.run import Run, Stage


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
    card = card_text(frame, data, report)
    print(card)
    run.tracker.table("prompts", frame[frame["split"] != "pretrain"].groupby(["split", "label"]).head(5))
    metrics: dict[str, Any] = {f"{split}.{label}": count for (split, label), count in sorted(counts.items())}
    run.finish(metrics | report | {"vocabulary": len(tokenizer)}, f"{len(frame)} rows, vocabulary {len(tokenizer)}")


def card_text(frame: Any, data: DataSet, report: dict[str, Any]) -> str:
    """The data set's card: counts, the rule of the split, what was left out of which source, examples."""
    counts = frame.groupby(["split", "label"], sort=False).agg(
        rows=("id", "size"),
        pairs=("pair", "nunique"),
        with_rejected=("rejected", lambda answers: (answers != "").sum()),
    )
    examples = frame.groupby(["split", "label"], sort=False).head(1)
    lines = [f"# Data card: {data.kind}", "", counts.reset_index().to_markdown(index=False), ""]
    lines += [f"Split rule: {data.split_rule()}.", "", *_report_lines(report)]
    lines += [f"- {e.split} / {e.label}: {e.prompt} -> {e.response}" for e in examples.itertuples()]
    return "\n".join(lines) + "\n"


def _report_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    if "duplicates" in report:
        kinds = {kind.replace("_", " "): rows for kind, rows in report["duplicates"].items() if kind != "pairs"}
        lines += ["Duplicates dropped: " + ", ".join(f"{rows} {kind}" for kind, rows in kinds.items()) + "."]
        lines += [f"- {pair}: {rows}" for pair, rows in report["duplicates"]["pairs"].items()] + [""]
    for source, rows in report.get("left_out", {}).items():
        lines += [f"Left out of {source} by its filter: {rows} rows.", ""]
    for source, revision in report.get("revision", {}).items():
        lines += [f"Revision of {source}: {revision}.", ""]
    return lines


STAGE = Stage("data", run, ("data", "openings"), ())
main = STAGE.main
