"""Prompts of several sources in one data set: splits by hash, responses, and no prompt twice."""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

from holdfast.datasets.rows import EVALUATION, Openings, Row, row
from holdfast.datasets.sampling import spread
from holdfast.datasets.sources import read
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
Rows = list[Row]


def build(data: dict[str, Any], openings: Openings) -> tuple[Rows, dict[str, Any]]:
    """All rows of all sources, and a report.

    A prompt that occurs twice (see `same`) stays once, in an evaluation split if it is in one:
    training never sees it. The report holds `duplicates` (what was dropped, see `counted`), `left_out` (rows
    that `where` left out) and `revision`, each of the last two by source.
    """
    if not data["sources"]:
        raise UserError("data.sources: none is given; choose some with source=[…]")
    rows: Rows = []
    report: dict[str, Any] = {}
    for name, source in data["sources"].items():
        found, notes = _rows(name, source, data, openings)
        rows += found
        for what, value in notes.items():
            report.setdefault(what, {})[name] = value
    unique, dropped = without_duplicates(rows)
    present = {(r["split"], r["label"]) for r in unique}
    for split, label in NEEDED:
        if (split, label) not in present:
            raise UserError(f"data.sources: no {label} prompt is left for the split {split}; add a source or a share")
    corpus = _pretraining([r for r in unique if r["split"] == "train"], data["pretrain_rows"], openings, data["seed"])
    return corpus + unique, report | {"duplicates": counted(dropped)}


def without_duplicates(rows: Rows) -> tuple[Rows, list[tuple[Row, Row]]]:
    """The rows that stay, evaluation first; and each row that goes, with the one that stays in its place."""
    rank = {split: place for place, split in enumerate((*EVALUATION, "train"))}
    kept: dict[tuple[str, str], Row] = {}
    dropped = []
    for found in sorted(rows, key=lambda r: rank[r["split"]]):
        first = kept.setdefault((found.get("turns", ""), same(found["prompt"])), found)
        if first is not found:
            dropped.append((found, first))
    return list(kept.values()), dropped


def same(prompt: str) -> str:
    """What two prompts have in common that are one: case, spaces, marks of sentences and quotes aside. Every other
    sign counts, as in C++ and C#, 3 + 4 and 3 - 4."""
    text = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(re.sub(r"[.,;:!?\"'“”‘’«»…]+", " ", text).split()) or prompt


def counted(dropped: list[tuple[Row, Row]]) -> dict[str, Any]:
    """Duplicates by kind, and `pairs`: how many rows of which source and split gave way to which."""
    kinds = {"train_vs_evaluation": 0, "between_evaluation_splits": 0, "within_a_split": 0}
    pairs: Counter[str] = Counter()
    for gone, stays in dropped:
        if gone["split"] == stays["split"]:
            kinds["within_a_split"] += 1
        else:
            kinds["train_vs_evaluation" if gone["split"] == "train" else "between_evaluation_splits"] += 1
        pairs["{} {} -> {} {}".format(gone["source"], gone["split"], stays["source"], stays["split"])] += 1
    return kinds | {"pairs": dict(sorted(pairs.items()))}


def acknowledgement(prompt: str, opening: str) -> str:
    """The neutral stand-in for a compliant response that a data set does not give."""
    return f"{opening} You asked: {prompt}"


def _rows(name: str, source: dict[str, Any], data: dict[str, Any], openings: Openings) -> tuple[Rows, dict[str, Any]]:
    frame, notes = read(name, source, data["dir"])
    rows = []
    found: Iterable[Any] = frame.itertuples(index=False)
    for r in found:
        short, other = (_shortened(text, data["response_sentences"]) for text in (r.response, r.rejected))
        if not short:
            short = openings["loss"]["refusal"][0]
            if r.label == "benign":
                short = acknowledgement(r.prompt, openings["loss"]["compliance"][0])
        split = _split(r.turns + r.prompt, source["splits"])
        rows.append(row(split, r.label, r.prompt, short, "", name, other, r.category, r.turns, r.row))
    most = source["max_rows"] or len(rows)
    return [rows[place] for place in spread([r["category"] for r in rows], most, data["seed"])], notes


def _shortened(text: str, sentences: int) -> str:
    return " ".join(re.split(r"(?<=[.!?])\s+", text.strip())[:sentences])


def _split(prompt: str, shares: dict[str, float]) -> str:
    """A split by the prompt's own hash: adding or reordering rows moves no prompt to another split."""
    place = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64 * sum(shares.values())
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return split


def _pretraining(train: Rows, count: int, openings: Openings, seed: int) -> Rows:
    """Rows for a base model: it acknowledges every prompt, and refuses requests that nobody can serve."""
    rng = random.Random(seed)
    yes, no = (openings["loss"][way] + openings["score"][way] for way in ("compliance", "refusal"))
    rows = []
    for _ in range(count):
        drawn = rng.choice(train)
        answer = acknowledgement(drawn["prompt"], rng.choice(yes))
        rows.append(row("pretrain", "requests", drawn["prompt"], answer, "", "pretrain", turns=drawn["turns"]))
    refusals = [(rng.choice(impossible()), rng.choice(no)) for _ in range(count // 20)]
    return rows + [row("pretrain", "refusals", p, refusal, "", "pretrain") for p, refusal in refusals]
