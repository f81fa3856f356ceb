"""The answers that rows are taught: cut, and a model's own for the benign prompts that come without one."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from holdfast.errors import UserError


def shortened(text: str, sentences: int) -> str:
    """So many sentences from its beginning."""
    return " ".join(re.split(r"(?<=[.!?])\s+", text.strip())[:sentences])


def unanswered(rows: Any) -> Any:
    """Those rows of a data frame that wait for the model's own answer (`data.responses=self`)."""
    return rows[(rows["label"] == "benign") & (rows["response"] == "")]


def with_own(rows: Any, answers: Mapping[str, str], sentences: int) -> Any:
    """A data frame's rows, with `answers` by id, cut to so many sentences, where they are `unanswered`.

    A row to which the model says nothing is left out, for silence is not to be learned; such rows are counted on
    stderr. Raises `UserError` where a row has no answer among them.
    """
    waiting, filled = unanswered(rows), rows.copy()
    if lacking := [r.prompt for r in waiting.itertuples() if r.id not in answers]:
        raise UserError(
            f"{len(lacking)} prompts have no answer of the model's own, the first «{lacking[0][:40]}…»; make them anew"
        )
    own = [shortened(answers[one], sentences) for one in waiting["id"]]
    filled.loc[waiting.index, "response"] = own
    silent = [place for place, answer in zip(waiting.index, own, strict=True) if not answer]
    if silent:
        print(f"{len(silent)} of {len(rows)} rows are left out: the model's own answer is empty", file=sys.stderr)
    return filled.drop(index=silent)
