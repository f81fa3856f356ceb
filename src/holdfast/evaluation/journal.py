"""What was measured so far, point by point: an evaluation that is killed goes on where it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from holdfast.runtime.files import as_json, read_frame, replacing, write_text


class Journal:
    """A folder with a file a point, of one `context`, which is all that the answers depend on. What is there of
    another context is removed."""

    def __init__(self, folder: Path, context: dict[str, Any]) -> None:
        self.folder = folder
        told = folder / "context.json"
        text = as_json(context)
        if not told.is_file() or told.read_text(encoding="utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(told, text)

    def has(self, place: int) -> bool:
        return self._path(place).is_file()

    def get(self, place: int) -> Any:
        """The data frame of a point."""
        return read_frame(self._path(place))

    def keep(self, place: int, frame: Any) -> None:
        with replacing(self._path(place)) as path:
            frame.to_parquet(path, index=False)

    def close(self) -> None:
        shutil.rmtree(self.folder)

    def _path(self, place: int) -> Path:
        return self.folder / f"{place:05d}.parquet"
