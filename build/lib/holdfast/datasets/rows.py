"""The rows that every data set is brought into."""

from __future__ import annotations

import hashlib

Openings = dict[str, dict[str, list[str]]]  # loss | score -> refusal | compliance -> texts
COLUMNS = ("id", "split", "label", "prompt", "response", "rejected", "pair", "source")
EVALUATION = ("test", "threshold", "tune")  # a prompt in two splits stays in the first of these


def row(
    split: str, label: str, prompt: str, response: str, pair: str, source: str, rejected: str = ""
) -> dict[str, str]:
    """One row. `rejected` is an answer that `response` is preferred to, "" where there is none; `pair` is what splits
    and bootstraps keep together, "" standing for the prompt itself."""
    digest = hashlib.sha256(f"{source}\0{split}\0{prompt}".encode()).hexdigest()[:12]
    return dict(zip(COLUMNS, (digest, split, label, prompt, response, rejected, pair or prompt, source), strict=True))
