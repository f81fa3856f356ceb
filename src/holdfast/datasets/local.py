"""Prompts from files or the Hub, with a column mapping from YAML."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from holdfast.datasets.rows import EVALUATION, Openings, row
from holdfast.datasets.world import impossible
from holdfast.errors import UserError

NEEDED = (
    ("train", "harmful"),
    ("train", "benign"),
    ("tune", "harmful"),
    ("threshold", "benign"),
    ("test", "harmful"),
    ("test", "benign"),
)
READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False),
    ".json": lambda path: pd.read_json(path, dtype=False),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
    ".parquet": pd.read_parquet,
}


def build(data: dict[str, Any], openings: Openings) -> tuple[list[dict[str, str]], dict[str, int]]:
    """All rows of all sources, and how many were dropped as duplicates.

    A prompt that occurs twice stays once, in an evaluation split if it is in one: training never sees it.
    """
    if not data["sources"]:
        raise UserError("data.sources: none is given; name at least one file with data.sources.<name>.file=…")
    rows = [r for name, source in data["sources"].items() for r in _rows(name, source, data, openings)]
    rank = {split: place for place, split in enumerate((*EVALUATION, "train"))}
    kept: dict[str, dict[str, str]] = {}
    for found in sorted(rows, key=lambda r: rank[r["split"]]):
        kept.setdefault(re.sub(r"\W+", " ", found["prompt"].casefold()).strip(), found)
    unique = list(kept.values())
    present = {(r["split"], r["label"]) for r in unique}
    for split, label in NEEDED:
        if (split, label) not in present:
            raise UserError(f"data.sources: no {label} prompt is left for the split {split}; add a source or a share")
    corpus = _pretraining([r for r in unique if r["split"] == "train"], data["pretrain_rows"], openings, data["seed"])
    return corpus + unique, {"duplicates_dropped": len(rows) - len(unique)}


def acknowledgement(prompt: str, opening: str) -> str:
    """The neutral stand-in for a compliant response that a data set does not give."""
    return f"{opening} You asked: {prompt}"


def _rows(name: str, source: dict[str, Any], data: dict[str, Any], openings: Openings) -> list[dict[str, str]]:
    frame = _read(name, source, data)
    columns = source["columns"]
    for role, column in columns.items():
        if column is not None and column not in frame.columns:
            have = ", ".join(map(str, frame.columns))
            raise UserError(f"data.sources.{name}.columns.{role}={column}: no such column; the file has {have}")
    prompts = frame[columns["prompt"]].fillna("").astype(str).str.strip()
    _check_prompts(name, prompts, frame, columns)
    responses = frame[columns["response"]].fillna("").astype(str) if columns["response"] else [""] * len(frame)
    labels = _labels(name, source, frame)
    rows = []
    for prompt, response, label in zip(prompts, responses, labels, strict=True):
        short = " ".join(re.split(r"(?<=[.!?])\s+", response.strip())[: data["response_sentences"]])
        if not short:
            short = openings["loss"]["refusal"][0]
            if label == "benign":
                short = acknowledgement(prompt, openings["loss"]["compliance"][0])
        rows.append(row(_split(prompt, source["splits"]), label, prompt, short, "", name))
    return _first(rows, source["max_rows"], data["seed"])


def _first(rows: list[dict[str, str]], most: int | None, seed: int) -> list[dict[str, str]]:
    return rows if most is None or most >= len(rows) else random.Random(seed).sample(rows, most)


def _read(name: str, source: dict[str, Any], data: dict[str, Any]) -> pd.DataFrame:
    if (source["file"] is None) == (source["hub"] is None):
        raise UserError(f"data.sources.{name}: give either file=… or hub=…")
    if source["hub"]:
        return _from_hub(name, source)
    path = Path(data["dir"] or ".", source["file"])
    if not path.is_file():
        raise UserError(f"data.sources.{name}: no file {path}; set data.dir=… or data.sources.{name}.file=…")
    if path.suffix not in READERS:
        raise UserError(f"{path}: choose one of {', '.join(READERS)}")
    try:
        frame = READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; convert the file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as {path.suffix[1:]} ({str(error).splitlines()[0]})") from None
    if frame.empty:
        raise UserError(f"{path}: holds no rows")
    return frame


def _from_hub(name: str, source: dict[str, Any]) -> pd.DataFrame:
    from datasets import load_dataset

    hub = source["hub"]
    try:
        loaded = load_dataset(hub, source["subset"], split=source["hub_split"], revision=source["revision"])
    except Exception as error:  # the client raises its own, its HTTP library's and the Hub's exceptions
        reason = str(error).splitlines()[0]
        raise UserError(f"{hub}: not loaded from the Hub ({reason}); or set data.sources.{name}.file=…") from None
    return loaded.to_pandas()


def _check_prompts(name: str, prompts: pd.Series[str], frame: pd.DataFrame, columns: dict[str, Any]) -> None:
    empty = prompts.index[prompts == ""]
    if len(empty):
        raise UserError(f"data.sources.{name}: row {empty[0] + 1} has an empty prompt; remove or fill it")
    if columns["id"]:
        repeated = frame[columns["id"]][frame[columns["id"]].duplicated()]
        if len(repeated):
            raise UserError(f"data.sources.{name}: the id {repeated.iloc[0]!r} occurs twice; ids must be unique")
    # Copies of AdvBench circulate whose two column names are swapped; evaluated as they stand, they would
    # measure how a model continues its own compliance.
    if (prompts.str.match(r"(Sure|Certainly|Of course),? here")).mean() > 0.5:
        others = ", ".join(str(c) for c in frame.columns if c != columns["prompt"])
        raise UserError(
            f"data.sources.{name}.columns.prompt={columns['prompt']}: that column holds compliant responses "
            f"(«{prompts.iloc[0][:30]}…»), not prompts; the file also has {others}"
        )


def _labels(name: str, source: dict[str, Any], frame: pd.DataFrame) -> list[str]:
    column = source["columns"]["label"]
    if column is None:
        if source["label"] is None:
            raise UserError(
                f"data.sources.{name}.label: set it to harmful or benign, or give columns.label and labels"
            )
        return [source["label"]] * len(frame)
    unknown = sorted(set(frame[column].astype(str)) - set(source["labels"]))
    if unknown:
        raise UserError(f"data.sources.{name}.labels: no entry for {', '.join(unknown)} of the column {column}")
    return [source["labels"][str(value)] for value in frame[column]]


def _split(prompt: str, shares: dict[str, float]) -> str:
    """A split by the prompt's own hash: adding or reordering rows moves no prompt to another split."""
    place = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64 * sum(shares.values())
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return split


def _pretraining(train: list[dict[str, str]], count: int, openings: Openings, seed: int) -> list[dict[str, str]]:
    """A base model that acknowledges every prompt, and knows refusals from what nobody can do."""
    rng = random.Random(seed)
    yes, no = (openings["loss"][way] + openings["score"][way] for way in ("compliance", "refusal"))
    drawn = [rng.choice(train)["prompt"] for _ in range(count)]
    rows = [row("pretrain", "requests", p, acknowledgement(p, rng.choice(yes)), "", "pretrain") for p in drawn]
    refusals = [(rng.choice(impossible()), rng.choice(no)) for _ in range(count // 20)]
    return rows + [row("pretrain", "refusals", p, refusal, "", "pretrain") for p, refusal in refusals]
