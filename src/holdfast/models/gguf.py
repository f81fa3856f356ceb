"""Models of one GGUF file, dequantized once and kept as a folder of safetensors."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from holdfast.errors import UserError, first_line
from holdfast.models.gguf_header import check_sizes, read_header


def dequantized(path: Path) -> Path:
    """The folder of the model that the file holds, in float32, below `$HOLDFAST_CACHE` or the user's cache, by the
    file's own hash.

    Raises `UserError` for a file that transformers cannot read.
    """
    with path.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    cache = os.environ.get("HOLDFAST_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(cache).expanduser() / "holdfast" / "gguf" / f"{path.stem}-{name}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            _convert(path, made)
            os.replace(made, folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def local(source: str | None) -> str | None:
    """A GGUF file's folder in the place of the file; all else as it is."""
    return str(dequantized(Path(source))) if source and Path(source).is_file() else source


def _convert(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = {"gguf_file": path.name, "local_files_only": True}
    try:
        with redirect_stderr(io.StringIO()):  # a bar of progress, which a log would hold line by line
            check_sizes(read_header(path), path)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **given)
            read = AutoModelForCausalLM.from_pretrained(path.parent, dtype="float32", **given)
    except Exception as error:  # gguf and transformers each raise their own kinds
        raise UserError(f"{path}: transformers cannot read this GGUF file ({first_line(error)})") from None
    del read.config.quantization_config  # as it was dequantized; `save_pretrained` refuses a model that has one
    fresh = type(read)(read.config)
    fresh.load_state_dict(read.state_dict())
    fresh.generation_config = read.generation_config
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
