"""The answers that rows are taught: cut, and a model's own for the benign prompts that come without one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def shortened(text: str, sentences: int) -> str:
    """So many sentences from its beginning."""
    return " ".join(re.split(r"(?<=[.!?])\s+", text.strip())[:sentences])


def unanswered(rows: Any) -> Any:
    """Those rows of a data frame that wait for the model's own answer (`data.responses=self`)."""
    return rows[(rows["label"] == "benign") & (rows["response"] == "")]


def with_own(rows: Any, answers: Mapping[str, str], sentences: int) -> Any:
    """A data frame's rows, with `answers` by id, cut to so many sentences, where they are `unanswered`; what was not
    asked, or to which the model says nothing, stays without."""
    waiting, filled = unanswered(rows), rows.copy()
    filled.loc[waiting.index, "response"] = [shortened(answers.get(one, ""), sentences) for one in waiting["id"]]
    return filled
