"""Prompts of several sources in one data set: splits by hash, responses, and no prompt in two of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from holdfast.datasets.answers import shortened
from holdfast.datasets.duplicates import counted, examples, without_duplicates, without_near
from holdfast.datasets.rows import Openings, Row, row
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
    training never sees it, nor what is nearly it (see `without_near`). The report holds `duplicates` and
    `near_duplicates` (what was dropped, see `counted`), `left_out` (rows that `where` left out) and `revision`, each
    of the last two by source.
    """
    if not data["sources"]:
        raise UserError("data.sources: none is given; choose some with source=[…]")
    _check_files(data["sources"], data["dir"] or ".")
    rows: Rows = []
    report: dict[str, Any] = {}
    for name, source in data["sources"].items():
        found, notes = _rows(name, source, data, openings)
        rows += found
        for what, value in notes.items():
            report.setdefault(what, {})[name] = value
    unique, gone = without_duplicates(rows)
    report["duplicates"] = counted(gone)
    if data["near_duplicates"]:
        unique, gone = without_near(unique, **data["near_duplicates"])
        report["near_duplicates"] = counted(gone) | {"examples": examples(gone)}
    _check_present(unique, near=len(gone) if data["near_duplicates"] else 0)
    corpus = _pretraining([r for r in unique if r["split"] == "train"], data["pretrain_rows"], openings, data["seed"])
    return corpus + unique, report


def _check_files(sources: dict[str, Any], folder: str) -> None:
    """All that lack are named at once, for somebody who will fetch them."""
    files = [Path(folder, one["file"]) for one in sources.values() if one["file"] and "://" not in one["file"]]
    lacking = [str(path) for path in files if not path.is_file()]
    if len(lacking) > 1:  # of a single one its source tells
        raise UserError(
            f"data.sources: no file {', '.join(lacking)}; put them there, or say where they are: data.dir=… "
            "(HOLDFAST_DATA=… where data.dir comes from it), or data.sources.<name>.file=…"
        )


def _check_present(rows: Rows, near: int) -> None:
    present = {(r["split"], r["label"]) for r in rows}
    for split, label in NEEDED:
        if (split, label) not in present:
            why = f"; data.near_duplicates=null keeps {near} near-duplicates" * (near > 0)
            raise UserError(
                f"data.sources: no {label} prompt is left for the split {split}; add a source or a share{why}"
            )


def acknowledgement(prompt: str, opening: str) -> str:
    """The neutral stand-in for a compliant response that a data set does not give."""
    return f"{opening} You asked: {prompt}"


def _rows(name: str, source: dict[str, Any], data: dict[str, Any], openings: Openings) -> tuple[Rows, dict[str, Any]]:
    frame, notes = read(name, source, data["dir"])
    rows = []
    found: Iterable[Any] = frame.itertuples(index=False)
    for r in found:
        short, other = (shortened(text, data["response_sentences"]) for text in (r.response, r.rejected))
        if not short:
            short = _stand_in(r, data["responses"], openings["loss"])
        split = _split(r.group or r.turns + r.prompt, source["label_splits"][r.label] or source["splits"])
        pair = f"{name}: {r.group}" if r.group else ""
        rows.append(row(split, r.label, r.prompt, short, pair, name, other, r.category, r.turns, r.row))
    most = source["max_rows"] or len(rows)
    return [rows[place] for place in spread([r["category"] for r in rows], most, data["seed"])], notes


def _stand_in(row: Any, responses: str, openings: dict[str, list[str]]) -> str:
    """For a row without an answer; none for a benign one that waits for the model's own."""
    if row.label == "harmful":
        return openings["refusal"][0]
    return "" if responses == "self" else acknowledgement(row.prompt, openings["compliance"][0])


def _split(key: str, shares: dict[str, float]) -> str:
    """A split by the hash of the prompt, or of its group: adding or reordering rows moves none to another split."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 * sum(shares.values())
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
