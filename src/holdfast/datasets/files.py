"""Files of prompts as a table, or one line that says which row is wrong."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from holdfast.errors import UserError, first_line
from holdfast.runtime.files import read_frame


def parsed(place: str, content: Path | bytes) -> pd.DataFrame:
    """The rows of a file named `place`; their index counts the file's rows from 0.

    A CSV may have commas, semicolons or tabs between its fields, as its header has them. Raises `UserError` for what
    is no UTF-8, no file of its suffix, or a row of other fields than the header.
    """
    suffix = PurePosixPath(place).suffix.lower()
    if suffix not in READERS:
        raise UserError(f"{place}: choose one of {', '.join(READERS)}")
    try:
        whole = content.read_bytes() if isinstance(content, Path) else content
        if not whole.strip():
            raise UserError(f"{place}: the file is empty: it holds no rows")
        return READERS[suffix](whole)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte {error.start} is not UTF-8; convert the file") from None
    except (ValueError, OSError, RecursionError, csv.Error) as error:  # a JSONDecodeError is a ValueError
        raise UserError(f"{place}: not readable as {suffix[1:]} ({first_line(error)})") from None


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig")  # spreadsheets begin a file with a byte order mark


def _csv(content: bytes) -> pd.DataFrame:
    text = _text(content)
    csv.field_size_limit(sys.maxsize)
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(lines, [])]
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise ValueError(f"the column {twice[0]} occurs twice")
    rows: dict[int, list[str]] = {}
    for place, fields in enumerate(lines):
        if not any(fields):  # spreadsheets leave such rows at the end
            continue
        if len(fields) != len(header):
            raise ValueError(
                f"row {place + 1} has {len(fields)} fields, the header {len(header)}; a text with {delimiter!r} in it "
                "needs quotes around it"
            )
        rows[place] = fields
    named = [column for column, name in enumerate(header) if name]
    cells = [[fields[column] for column in named] for fields in rows.values()]
    return pd.DataFrame(cells, index=list(rows), columns=[header[c] for c in named], dtype=object)


def _json_lines(content: bytes) -> pd.DataFrame:
    rows: dict[int, dict[str, Any]] = {}
    for place, line in enumerate(_text(content).split("\n")):
        if not line.strip():
            continue
        try:
            rows[place] = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"row {place + 1}: {error or 'nested too deep'}") from None
        if not isinstance(rows[place], dict):
            raise ValueError(f"row {place + 1} is no object with columns")
    return pd.DataFrame(list(rows.values()), index=list(rows), dtype=object)


def _json(content: bytes) -> pd.DataFrame:
    found = json.loads(_text(content))
    if isinstance(found, list):
        for place, one in enumerate(found):
            if not isinstance(one, dict):
                raise ValueError(f"row {place + 1} is no object with columns")
    elif not isinstance(found, dict):
        raise ValueError("is neither a list of rows nor an object of columns")
    return pd.DataFrame(found, dtype=object)


READERS: dict[str, Callable[[bytes], pd.DataFrame]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": lambda content: read_frame(io.BytesIO(content)).reset_index(drop=True),
}
