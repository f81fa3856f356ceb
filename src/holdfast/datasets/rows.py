"""The rows that every data set is brought into."""

from __future__ import annotations

import hashlib
from typing import Any

Openings = dict[str, dict[str, list[str]]]  # loss | score -> refusal | compliance -> texts
Row = dict[str, Any]
COLUMNS = ("id", "split", "label", "prompt", "response", "rejected", "pair", "source", "category", "turns", "row")
CONTEXT_END = "\n\n---\n\n"  # between a context and its request in one prompt: HarmBench's form
EVALUATION = ("test", "threshold", "tune")  # a prompt in two splits stays in the first of these
TRAINING = ("refine", "train")  # or else of these; what is in `refine`, alignment never sees


def row(
    split: str,
    label: str,
    prompt: str,
    response: str,
    pair: str,
    source: str,
    rejected: str = "",
    category: str = "",
    turns: str = "",
    place: int = 0,
) -> Row:
    """One row. `rejected` is an answer that `response` is preferred to, "" where there is none; `pair` is what splits
    and bootstraps keep together, "" standing for the prompt itself; `turns` are those before the prompt, as JSON;
    `place` is the row's number in its source, 0 for one that is made."""
    digest = hashlib.sha256(f"{source}\0{split}\0{turns}{prompt}".encode()).hexdigest()[:12]
    own = (digest, split, label, prompt, response, rejected, pair or turns + prompt, source, category, turns, place)
    return dict(zip(COLUMNS, own, strict=True))
