"""Data stage: build every split's prompts, the tokenizer of a model made in the run, and the data card."""

from __future__ import annotations

from collections import Counter
from typing import Any

from omegaconf import OmegaConf

from holdfast.errors import UserError
from holdfast.stage import Run, launch


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
    dropped = {"duplicates_dropped": 0}
    if data["kind"] == "world":
        rows = world.build(data, openings)
    else:
        rows, dropped = local.build(data, openings)
    frame = pd.DataFrame(rows)
    tokenizer = train_tokenizer((f"{r['prompt']} {r['response']}" for r in rows), data["vocabulary"])
    run.save_table(frame, "prompts.parquet")
    tokenizer.save_pretrained(run.out / "tokenizer")
    counts = Counter(zip(frame["split"], frame["label"], strict=True))
    card = card_text(frame, data, dropped["duplicates_dropped"])
    print(card)
    run.tracker.table("prompts", frame[frame["split"] != "pretrain"].groupby(["split", "label"]).head(5))
    metrics = {f"{split}.{label}": count for (split, label), count in sorted(counts.items())} | dropped
    run.finish(metrics | {"vocabulary": len(tokenizer)}, f"{len(frame)} rows, vocabulary {len(tokenizer)}")


def card_text(frame: Any, data: dict[str, Any], dropped: int) -> str:
    """The data set's card: counts, the rule of the split, examples."""
    counts = frame.groupby(["split", "label"], sort=False).agg(rows=("id", "size"), pairs=("pair", "nunique"))
    if data["kind"] == "world":
        rule = f"whole Latin layers of (verb, object) pairs, {data['layers']}: no pair is in two splits"
    else:
        rule = "by the hash of the prompt, with the shares of each source; no prompt is in two splits"
    examples = frame.groupby(["split", "label"], sort=False).head(1)
    lines = [f"# Data card: {data['kind']}", "", counts.reset_index().to_markdown(index=False), ""]
    lines += [f"Split rule: {rule}. Duplicates dropped: {dropped}.", ""]
    lines += [f"- {e.split} / {e.label}: {e.prompt} -> {e.response}" for e in examples.itertuples()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch("data", run)
