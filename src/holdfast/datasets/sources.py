"""The rows of one source: a file, an address or a data set of the Hub, with the column mapping of its YAML."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from holdfast.datasets.files import parsed
from holdfast.datasets.rows import CONTEXT_END
from holdfast.datasets.turns import Chat, answer, chat, is_chat
from holdfast.errors import UserError, first_line

T = TypeVar("T", str, Chat)
MESSAGES = "messages"  # where chats stand by custom
OPTIONAL = ("category", "group")


def read(name: str, source: dict[str, Any], folder: str | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Columns prompt, turns (before it, as JSON), response, rejected ("" where there is none), label, category, group
    and row, the number that the data give it; and notes on the source.

    That is `left_out`, how many rows `where`, `matches` and `columns.pair.required` left out, and for a data set of
    the Hub the `revision` it came from.
    """
    frame, notes = _raw(name, source, folder)
    if frame.empty:
        raise UserError(f"data.sources.{name}: holds no rows")
    columns = source["columns"]
    if columns["prompt"] not in frame.columns and MESSAGES in frame.columns:
        frame = frame.rename(columns={MESSAGES: columns["prompt"]})
    _check_columns(name, source, frame)
    kept, responses, rejected = _answered(name, columns, _where(name, source, frame))
    if source["where"] or source["matches"] or (columns["pair"] and columns["pair"]["required"]):
        notes["left_out"] = len(frame) - len(kept)
    chats = _chats(name, kept, columns["prompt"])
    prompts = chats["prompt"]
    _check_prompts(name, prompts, kept, columns)
    if columns["context"]:
        contexts = _text(name, kept, columns["context"]).str.strip()
        prompts = prompts.where(contexts == "", contexts + CONTEXT_END + prompts)
    if not (columns["response"] or columns["pair"]):
        responses = chats["response"]
    found = {"prompt": prompts, "turns": chats["turns"], "response": responses, "rejected": rejected}
    # A file in the place of the authors' own may have none.
    found |= {role: _each(name, kept, c, _named) if (c := columns[role]) in kept else "" for role in OPTIONAL}
    return pd.DataFrame(found | {"label": _labels(name, source, kept), "row": kept.index + 1}), notes


def _named(cell: Any) -> str:
    """The name in a cell, or of one that has a truth value by name, those that are true."""
    return ", ".join(sorted(name for name, true in cell.items() if true)) if isinstance(cell, dict) else str(cell)


def _chats(name: str, frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Columns prompt, turns and response, of cells that hold a prompt or a chat."""
    made = _each(name, frame, column, lambda cell: chat(cell) if is_chat(cell) else Chat(str(cell).strip(), "", ""))
    return pd.DataFrame(made.tolist(), index=frame.index, columns=Chat._fields, dtype=object)


def _text(name: str, frame: pd.DataFrame, column: str) -> pd.Series[str]:
    return _each(name, frame, column, lambda cell: answer(cell) if is_chat(cell) else str(cell))


def _each(name: str, frame: pd.DataFrame, column: str, made: Callable[[Any], T]) -> pd.Series[Any]:
    """`made` of every cell, texts, with "" for an empty one. Raises `UserError` with the row."""
    cells = frame[column].astype(object).where(frame[column].notna(), "")
    found = []
    for place, cell in cells.items():
        try:
            text = made(cell)
            "".join(text).encode()  # of a chat: its parts
            found.append(text)
        except UserError as error:
            raise UserError(f"data.sources.{name}: row {place + 1} {error}") from None  # type: ignore[operator]
        except UnicodeEncodeError:
            raise UserError(f"data.sources.{name}: row {place + 1} holds half of a surrogate pair") from None  # type: ignore[operator]
    return pd.Series(found, index=frame.index, dtype=object)


def _raw(name: str, source: dict[str, Any], folder: str | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    file = source["file"]
    if file and "://" in file:
        return parsed(file, _downloaded(name, file)), {}
    if file:
        path = Path(folder or ".", file)
        if not path.is_file():
            raise UserError(f"data.sources.{name}: no file {path}; set data.dir=… or data.sources.{name}.file=…")
        return parsed(str(path), path), {}
    if source["hub"]:
        return _from_hub(name, source)
    raise UserError(f"data.sources.{name}: give either file=… or hub=…")


def _downloaded(name: str, address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=60) as page:
            return bytes(page.read())
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"data.sources.{name}: {address} cannot be had ({reason}); without a network, fetch it elsewhere and set "
            f"data.sources.{name}.file=…"
        ) from None


def _from_hub(name: str, source: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    from datasets import load_dataset_builder

    hub, wanted = source["hub"], source["revision"]
    try:
        builder = load_dataset_builder(hub, source["subset"], revision=wanted, **source["hub_options"])
        builder.download_and_prepare()
        frame = builder.as_dataset(split=source["hub_split"]).to_pandas()
    except Exception as error:  # the client raises its own, its HTTP library's and the Hub's exceptions
        raise UserError(_hub_error(name, hub, error)) from None
    # Without a network the client takes whatever revision its cache holds.
    if wanted and builder.hash and builder.hash != wanted:
        raise UserError(
            f"data.sources.{name}.revision={wanted}: {hub} came as {builder.hash}; load it once with a network"
        )
    if not wanted:
        print(f"data.sources.{name}: {hub} came as revision={builder.hash}; pin it")
    return frame, {"revision": builder.hash}


def _hub_error(name: str, hub: str, error: Exception) -> str:
    reason = first_line(error)
    if "gated" in reason:
        page = f"https://huggingface.co/datasets/{hub}"
        return f"{hub}: gated; accept its licence at {page}, then `hf auth login`; or set data.sources.{name}.file=…"
    offline = "HF_HUB_OFFLINE is set; " if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    return f"{hub}: not loaded from the Hub ({reason}); {offline}without a network, set data.sources.{name}.file=…"


def _check_columns(name: str, source: dict[str, Any], frame: pd.DataFrame) -> None:
    for key, column in _asked(source):
        if column not in frame.columns:
            have = ", ".join(map(str, frame.columns))
            raise UserError(f"data.sources.{name}.{key}: no such column; the data have {have}")


def _asked(source: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every column that the mapping names, and the key that names it."""
    for role, column in source["columns"].items():
        if isinstance(column, str) and role not in OPTIONAL:
            yield f"columns.{role}={column}", column
    for role, columns in (source["columns"]["pair"] or {}).items():
        for column in [columns] if isinstance(columns, str) else columns or ():
            yield f"columns.pair.{role}={column}", column
    for rule in ("where", "matches"):
        for column in source[rule]:
            yield f"{rule}.{column}", column


def _where(name: str, source: dict[str, Any], frame: pd.DataFrame) -> pd.DataFrame:
    for column, values in source["where"].items():
        present = frame[column].astype(str)
        if absent := sorted(set(values) - set(present)):
            have = ", ".join(sorted(set(present))[:8])
            raise UserError(f"data.sources.{name}.where.{column}: no row has {', '.join(absent)}; there are {have}")
        frame = frame[present.isin(values)]
    for column, pattern in source["matches"].items():
        frame = frame[[re.search(pattern, text) is not None for text in frame[column].astype(str)]]
        if frame.empty:
            raise UserError(f"data.sources.{name}.matches.{column}: no row matches {pattern}")
    return frame


def _answered(name: str, columns: dict[str, Any], frame: pd.DataFrame) -> tuple[pd.DataFrame, Any, Any]:
    """The rows that stay, their responses and the answers that these are preferred to ("": none)."""
    pair = columns["pair"]
    if pair is None:
        response, rejected = (
            _text(name, frame, columns[role]) if columns[role] else "" for role in ("response", "rejected")
        )
        return frame, response, rejected
    chosen = _text(name, frame, pair["chosen"])
    if unknown := sorted(set(chosen) - {"0", "1"}):
        raise UserError(f"data.sources.{name}.columns.pair.chosen={pair['chosen']}: holds {unknown[0]!r}; give 0 or 1")
    second = chosen == "1"
    if pair["required"]:
        safe, also = (_text(name, frame, column).str.casefold() == "true" for column in pair["required"])
        may = also.where(second, safe)
        frame, second = frame[may], second[may]
    one, other = (_text(name, frame, column) for column in pair["candidates"])
    return frame, other.where(second, one), one.where(second, other)


def _check_prompts(name: str, prompts: pd.Series[str], frame: pd.DataFrame, columns: dict[str, Any]) -> None:
    empty = prompts.index[prompts == ""]
    if len(empty):
        raise UserError(f"data.sources.{name}: row {empty[0] + 1} has an empty prompt; remove or fill it")
    if columns["id"]:
        repeated = frame[columns["id"]][frame[columns["id"]].duplicated()]
        if len(repeated):
            raise UserError(f"data.sources.{name}: the id {str(repeated.iloc[0])!r} occurs twice; ids must be unique")
    # Copies of AdvBench circulate whose two column names are swapped; evaluated as they stand, they would
    # measure how a model continues its own compliance.
    if (prompts.str.match(r"(Sure|Certainly|Of course),? here")).mean() > 0.5:
        others = ", ".join(str(c) for c in frame.columns if c != columns["prompt"])
        raise UserError(
            f"data.sources.{name}.columns.prompt={columns['prompt']}: that column holds compliant responses "
            f"(«{prompts.iloc[0][:30]}…»), not prompts; the data also have {others}"
        )


def _labels(name: str, source: dict[str, Any], frame: pd.DataFrame) -> Any:
    column = source["columns"]["label"]
    if column is None:
        if source["label"] is None:
            raise UserError(
                f"data.sources.{name}.label: set it to harmful or benign, or give columns.label and labels"
            )
        return source["label"]
    values = frame[column].map(str)  # of an empty cell too
    unknown = sorted(set(values) - set(source["labels"]))
    if unknown:
        raise UserError(f"data.sources.{name}.labels: no entry for {', '.join(unknown)} of the column {column}")
    return values.map(source["labels"])
