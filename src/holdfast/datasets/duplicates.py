"""Prompts that are one, and prompts that are nearly one: which of them stays, and in which split."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from holdfast.datasets.rows import EVALUATION, TRAINING, Row
from holdfast.datasets.turns import conversation

Rows = list[Row]
Run = tuple[str, ...]
Gone = list[tuple[Row, Row]]  # each row that goes, with the one that stays in its place
SPLITS = (*EVALUATION, *TRAINING)  # of two rows that are one, the later goes
PARTS = 10_000  # in which a word's weight is counted: in whole numbers, sums do not depend on an order
CHUNK = 2048  # rows at a time, which bounds the memory


def without_duplicates(rows: Rows) -> tuple[Rows, Gone]:
    """The rows that stay, evaluation first; and each row that goes, with the one that stays in its place."""
    kept: dict[tuple[str, str], Row] = {}
    gone = []
    for found in sorted(rows, key=lambda r: SPLITS.index(r["split"])):
        first = kept.setdefault((found.get("turns", ""), same(found["prompt"])), found)
        if first is not found:
            gone.append((found, first))
    return list(kept.values()), gone


def same(prompt: str) -> str:
    """What two prompts have in common that are one: case, spaces, marks of sentences and quotes aside. Every other
    sign counts, as in C++ and C#, 3 + 4 and 3 - 4."""
    text = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(re.sub(r"[.,;:!?\"'“”‘’«»…]+", " ", text).split()) or prompt


def without_near(rows: Rows, words: int, share: float, common: int) -> tuple[Rows, Gone]:
    """The rows that stay; and each row that goes, with the most alike of those that it gives way to.

    Two prompts are nearly one where of the runs of `words` words that the one with fewer has, `share` are in the other
    too. A run whose rarest word is in more than `common` prompts counts for less, by the square: it tells how one
    asks, not for what. A prompt shorter than a run is compared by words, with those of the longer one for the whole.

    Training gives way to every evaluation split, and one of these to a higher one of the same label. Prompts of unlike
    labels that are evaluated on are contrasts, which differ in the word that matters; and within a split all stay, as
    they do between two that are trained on.
    """
    likeness = Likeness([_text(row) for row in rows], words, common)
    labels, ids = np.array([row["label"] for row in rows]), [row["id"] for row in rows]
    splits = np.array([row["split"] for row in rows])
    stay: Any = np.array([], dtype=int)
    best: dict[int, tuple[float, str, int]] = {}
    for split in SPLITS:
        mine = np.flatnonzero(splits == split)
        for one, other, alike in likeness.pairs(mine, stay, share):
            if split in TRAINING or labels[one] == labels[other]:
                best[one] = max(best.get(one, (0.0, "", 0)), (alike, ids[other], other))
        if split in EVALUATION:
            stay = np.array([*stay, *(place for place in mine if place not in best)], dtype=int)
    kept = [row for place, row in enumerate(rows) if place not in best]
    return kept, [(rows[one], rows[other]) for one, (_, _, other) in sorted(best.items())]


def counted(gone: Gone) -> dict[str, Any]:
    """Duplicates by kind, and `pairs`: how many rows of which source and split gave way to which."""
    kinds = {"train_vs_evaluation": 0, "between_evaluation_splits": 0, "within_a_split": 0}
    for row, stays in gone:
        if row["split"] == stays["split"]:
            kinds["within_a_split"] += 1
        else:
            kinds["train_vs_evaluation" if row["split"] in TRAINING else "between_evaluation_splits"] += 1
    return kinds | {"pairs": dict(sorted(Counter(_pair(*one) for one in gone).items()))}


def examples(gone: Gone) -> dict[str, str]:
    """Two prompts for each of the `pairs`, chosen by their ids: not those that a file has first."""
    chosen = {_pair(*one): one for one in sorted(gone, key=lambda one: one[0]["id"])}
    return {pair: " -> ".join(f"«{row['prompt'][:100]}»" for row in chosen[pair]) for pair in sorted(chosen)}


def _pair(row: Row, stays: Row) -> str:
    return "{} {} -> {} {}".format(row["source"], row["split"], stays["source"], stays["split"])


def _text(row: Row) -> str:
    return " ".join(turn["content"] for turn in conversation(row["prompt"], row.get("turns", "")))


class Likeness:
    """How much the texts have in common: runs of words in order, or for short texts words alone."""

    def __init__(self, texts: list[str], words: int, common: int) -> None:
        found = [same(text).split() for text in texts]
        self.short = np.array([len(one) < words for one in found], dtype=bool)
        counts = Counter(word for one in found for word in set(one))
        weights = {word: min(PARTS, PARTS * common**2 // count**2) for word, count in counts.items()}
        self.runs = Profiles.of((_runs(one, words) for one in found), weights)
        self.words = Profiles.of((_runs(one, 1) for one in found), weights)

    def pairs(self, some: Any, others: Any, share: float) -> Iterator[tuple[int, int, float]]:
        """Places of two texts, one of `some` and one of `others`, (n,) each, that are nearly one, and how much."""
        brief, briefs = self.short[some], self.short[others]
        yield from self.runs.pairs(some[~brief], others[~briefs], share, np.minimum)
        yield from self.words.pairs(some[brief], others, share, np.maximum)
        yield from self.words.pairs(some[~brief], others[briefs], share, np.maximum)


@dataclass(frozen=True)
class Profiles:
    """What each text is made of: (texts, runs), 1 where it has the run, and the run's weight there, which is that of
    its rarest word; and the weight of the whole text, (texts,)."""

    has: csr_array
    weighs: csr_array
    whole: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[set[Run]], weights: dict[str, int]) -> Profiles:
        known: dict[Run, int] = {}
        columns: list[int] = []
        ends = [0]
        for runs in texts:
            columns += [known.setdefault(run, len(known)) for run in runs]
            ends.append(len(columns))
        weight = np.array([max([weights[word] for word in run]) for run in known], dtype=np.int64)
        places = np.array(columns, dtype=np.int64)
        heavy = weight[places] > 0  # what is in too many texts is left out, and so not multiplied
        kept, starts = places[heavy], np.concatenate([[0], np.cumsum(heavy)])[ends]
        shape = len(ends) - 1, len(known)
        has = csr_array((np.ones(len(kept), dtype=np.int64), kept, starts), shape=shape)
        weighs = csr_array((weight[kept], kept, starts), shape=shape)
        return cls(has, weighs, np.asarray(weighs.sum(1)).ravel())

    def pairs(self, some: Any, others: Any, share: float, of: np.ufunc) -> Iterator[tuple[int, int, float]]:
        """The whole is the lesser or the greater of two texts' weights, as `of` takes."""
        against = self.weighs[others].T.tocsr()
        for start in range(0, len(some), CHUNK):
            chunk = some[start : start + CHUNK]
            shared = (self.has[chunk] @ against).tocoo()
            one, other = chunk[shared.row], others[shared.col]
            alike = shared.data / of(self.whole[one], self.whole[other])
            near = alike >= share
            yield from zip(one[near].tolist(), other[near].tolist(), alike[near].tolist(), strict=True)


def _runs(words: list[str], size: int) -> set[Run]:
    return set(zip(*(words[start:] for start in range(size)), strict=False))
