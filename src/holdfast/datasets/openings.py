"""How a model's own answers begin: openings to score its refusal margin with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def opening(text: str, words: int) -> str:
    """The first so many words, as they are spaced."""
    parts = text.split(maxsplit=words)
    return text[: len(text) - len(parts[words])].rstrip() if len(parts) > words else text.rstrip()


def harvested(texts: Sequence[str], words: int, most: int) -> list[str]:
    """The commonest openings of so many words, the commonest first; of two as common the one that comes first."""
    return [found for found, _ in Counter(opening(text, words) for text in texts).most_common(most) if found]


def covered(texts: Sequence[str], openings: Sequence[str]) -> float:
    """The share of texts that begin with one of them; 0 of none."""
    return sum(text.startswith(tuple(openings)) for text in texts) / len(texts) if texts else 0.0
