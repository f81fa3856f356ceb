"""Chats, in the form that OpenAI and TRL give them: lists of turns with `role` and `content`."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from holdfast.errors import UserError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Chat(NamedTuple):
    """The last user turn; the turns before it, as JSON, "" for none; and the answer that follows, "" for none."""

    prompt: str
    turns: str
    response: str


def is_chat(value: Any) -> bool:
    """Whether a cell holds turns, in a CSV as JSON."""
    if isinstance(value, str):
        return value.lstrip().startswith("[{") and '"role"' in value
    turns = list(value) if hasattr(value, "__iter__") else []
    return bool(turns) and all(isinstance(turn, dict) and "role" in turn for turn in turns)


def chat(value: Any) -> Chat:
    """Raises `UserError` for turns without an end in a user's, of other roles, or with other content than text."""
    turns = [_turn(one) for one in _listed(value)]
    response = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else ""
    if not turns or turns[-1]["role"] != "user":
        raise UserError("holds no user turn that an answer could follow")
    *earlier, last = turns
    return Chat(last["content"], json.dumps(earlier, ensure_ascii=False) if earlier else "", response)


def answer(value: Any) -> str:
    """The text of a chosen or rejected answer, which may come as a chat."""
    turns = [_turn(one) for one in _listed(value)]
    return turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""


def conversation(prompt: str, turns: str) -> list[dict[str, str]]:
    """What a chat template is given: the turns before the prompt, and the prompt."""
    return [*(json.loads(turns) if turns else []), {"role": "user", "content": prompt}]


def _listed(value: Any) -> list[Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else list(value)
    except (ValueError, RecursionError):
        raise UserError("holds turns that are no JSON") from None
    return found


def _turn(given: Any) -> dict[str, str]:
    role = given.get("role") if isinstance(given, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise UserError(f"has a turn of the role {role}; there are {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": _content(given.get("content")).strip()}


def _content(given: Any) -> str:
    """Text, or a list of parts that are text; an answer that only called tools has none."""
    if given is None or isinstance(given, str):
        return given or ""
    parts: list[Any] = list(given) if hasattr(given, "__iter__") else [None]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise UserError("has a turn with other content than text")
    return "\n".join(part["text"] for part in parts)
