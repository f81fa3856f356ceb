"""Data stage: build every split's prompts, the tokenizer of a model made in the run, and the data card."""

from __future__ import annotations

from collections import Counter
from typing import Any

from omegaconf import OmegaConf

from holdfast.errors import UserError
from holdfast.runtime.run import Run, Stage


def run(run: Run) -> None:
    import pandas as pd

    from holdfast.datasets import local, world
    from holdfast.datasets.tokens import train_tokenizer

    data: dict[str, Any] = OmegaConf.to_container(run.cfg.data)  # type: ignore[assignment]
    openings: Any = OmegaConf.to_container(run.cfg.openings)
    if set(openings["loss"]["refusal"] + openings["loss"]["compliance"]) & set(
        openings["score"]["refusal"] + openings["score"]["compliance"]
    ):
        raise UserError(
            "openings: an opening is in both loss and score; a margin must not be scored on what it was taught"
        )
    report: dict[str, Any] = {}
    if data["kind"] == "world":
        rows = world.build(data, openings)
    else:
        rows, report = local.build(data, openings)
    frame = pd.DataFrame(rows)
    tokenizer = train_tokenizer((f"{r['prompt']} {r['response']}" for r in rows), data["vocabulary"])
    run.save_table(frame, "prompts.parquet")
    tokenizer.save_pretrained(run.out / "tokenizer")
    counts = Counter(zip(frame["split"], frame["label"], strict=True))
    card = card_text(frame, data, report)
    print(card)
    run.tracker.table("prompts", frame[frame["split"] != "pretrain"].groupby(["split", "label"]).head(5))
    metrics: dict[str, Any] = {f"{split}.{label}": count for (split, label), count in sorted(counts.items())}
    run.finish(metrics | report | {"vocabulary": len(tokenizer)}, f"{len(frame)} rows, vocabulary {len(tokenizer)}")


def card_text(frame: Any, data: dict[str, Any], report: dict[str, Any]) -> str:
    """The data set's card: counts, the rule of the split, what was left out of which source, examples."""
    counts = frame.groupby(["split", "label"], sort=False).agg(
        rows=("id", "size"),
        pairs=("pair", "nunique"),
        with_rejected=("rejected", lambda answers: (answers != "").sum()),
    )
    if data["kind"] == "world":
        rule = f"whole Latin layers of (verb, object) pairs, {data['layers']}: no pair is in two splits"
    else:
        rule = "by the hash of the prompt, with the shares of each source; no prompt is in two splits"
    examples = frame.groupby(["split", "label"], sort=False).head(1)
    lines = [f"# Data card: {data['kind']}", "", counts.reset_index().to_markdown(index=False), ""]
    lines += [f"Split rule: {rule}.", "", *_report_lines(report)]
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
