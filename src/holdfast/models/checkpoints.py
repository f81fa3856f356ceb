"""What the folder of a model holds, by its JSON and the headers of its safetensors alone."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

from holdfast.errors import UserError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_config.json"
HEADER = 100_000_000  # bytes of the longest that the format allows
LENGTH = struct.Struct("<Q")
MERGE = (
    'python -c "from peft import AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; '
    "M.from_pretrained('{adapter}').merge_and_unload().save_pretrained('merged'); "
    "T.from_pretrained('{base}').save_pretrained('merged')\""
)


def check(given: str, folder: Path) -> None:
    """Raise `UserError` for a folder that is by its JSON no model of float weights, which all that perturbs or refines
    needs; `given` is how the user named it."""
    if (folder / ADAPTER).is_file():  # transformers would fetch its base and put the adapter beside the weights
        base = mapping(folder / ADAPTER).get("base_model_name_or_path", "a model that it does not name")
        merge = MERGE.format(adapter=folder, base=base)
        raise UserError(f"{given}: holds an adapter of {base}; merge it and give model=merged: {merge}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{given}: holds no config.json; give a folder as save_pretrained writes it")
    if quantized := mapping(folder / "config.json").get("quantization_config"):
        method = quantized.get("quant_method", "by a method it does not name")
        raise UserError(f"{given}: is quantized already ({method}); give the model that it was made from")


def mapping(path: Path) -> dict[str, Any]:
    """A JSON object from its file. Raises `UserError` for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({error}); give the file that came with the model") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: is no JSON object; give the file that came with the model")
    return found


def ends(folder: Path) -> list[int]:
    """The tokens that end a text, by the settings for generation, else by the configuration; none where both are
    silent."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file() and (found := mapping(folder / name).get("eos_token_id")) is not None:
            return found if isinstance(found, list) else [found]
    return []


def context(folder: Path) -> int:
    """How many tokens the model reads at most, as far as its configuration says."""
    config = mapping(folder / "config.json")
    said = {**config, **config.get("text_config", {})}.get("max_position_embeddings")
    return said if isinstance(said, int) else sys.maxsize


def shards(folder: Path) -> list[Path]:
    """The files with the weights that transformers reads; a folder may hold other safetensors, such as Mistral's
    consolidated ones. Raises `UserError` where one is missing."""
    index, names = folder / INDEX, [WEIGHTS]
    if index.is_file():
        where = mapping(index).get("weight_map")
        if not isinstance(where, dict) or not all(name == Path(str(name)).name for name in where.values()):
            raise UserError(f"{index}: its weight_map names no files of this folder; give the one of the model")
        named = sorted(set(where.values()))
        if WEIGHTS in named or not (folder / WEIGHTS).is_file():  # else that one file is read, and no index
            names = named
    for name in names:
        if not (folder / name).is_file():
            by = f"which {INDEX} names" if index.is_file() else f"nor {INDEX}"
            raise UserError(f"{folder}: holds no {name}, {by}; give a folder with all its safetensors")
    return [folder / name for name in names]


def tensors(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Name -> type and shape of every tensor of a model. Raises `UserError` where a file is missing or damaged."""
    return {name: (t["dtype"], t["shape"]) for path in shards(folder) for name, t in _header(path).items()}


def dtype_of(folder: Path) -> str:
    """What model.dtype=auto makes of a folder: as its config.json says, else the type of its first floats."""
    config = mapping(folder / "config.json")
    if named := config.get("dtype") or config.get("torch_dtype"):
        return str(named).removeprefix("torch.")
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found = (names.get(t["dtype"]) for _, t in sorted(_header(shards(folder)[0]).items()))
    return next(filter(None, found), "float32")


def _header(path: Path) -> dict[str, Any]:
    """Raises `UserError` where the file is not as long as it says: reading on would take any amount of memory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = LENGTH.unpack(file.read(LENGTH.size))[0] if size >= LENGTH.size else size
        start = LENGTH.size + length
        try:
            found = json.loads(file.read(length)) if length <= HEADER and start <= size else {}
            found.pop("__metadata__", None)
            whole = start + max(t["data_offsets"][1] for t in found.values()) == size
            whole &= all(isinstance(t["dtype"], str) and isinstance(t["shape"], list) for t in found.values())
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            whole = False
    if not whole:
        raise UserError(f"{path}: is cut short, or no safetensors (a pointer of Git LFS?); fetch it again")
    return found
