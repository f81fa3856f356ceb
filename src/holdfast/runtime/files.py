"""Files that are written whole or not at all, and a digest of code."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from holdfast.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


class replacing:
    """Context manager: yields a temporary path beside `path`, and moves it there if the block succeeds."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(path.name + ".tmp")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: Path) -> str:
    """Of a user's file; raises `UserError` where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; convert the file") from None


def read_frame(source: Path | BinaryIO, columns: list[str] | None = None) -> pd.DataFrame:
    """Of a Parquet file, by this thread alone: where memory has run out Arrow's own threads do not begin, and a read
    that waits for them waits for ever. Raises `MemoryError` where it still asks for one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            return file.read(columns, use_threads=False).to_pandas(use_threads=False)
    except pa.ArrowException as error:
        if "worker thread" not in str(error):
            raise
        raise MemoryError(str(error)) from None


def as_json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def code_digest(*rooms: str) -> str:
    """A hash of what the modules of these rooms do: of their syntax trees, so that a comment changes nothing."""
    package, found = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(path for room in rooms for path in (package / room).rglob("*.py")):
        found.update(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode())
    return found.hexdigest()[:16]
