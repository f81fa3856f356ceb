"""The header of a GGUF file, every length in it held against the file's own size.

The `gguf` package believes what a file says: an array of 2^60 numbers in a file of a kilobyte would fill the memory,
and so would the model that a configuration of 2^30 layers describes. Layout: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # by the number of a value's type
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
MOST = 2**16  # entries and tensors of a header; the largest models have some thousands


@dataclass(frozen=True)
class Header:
    """`values` has no arrays, but their lengths; `shapes` those of all tensors by name, as the file orders them."""

    values: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def weights(self) -> int:
        return sum(map(math.prod, self.shapes.values()))


def read_header(path: Path) -> Header:
    """Raises `ValueError`, with one line, for what is no GGUF file or does not fit into its own size."""
    size = path.stat().st_size
    if size < 24:
        raise ValueError("it is too short to be one")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Reader(data).header()


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def header(self) -> Header:
        self.take(4)
        version, tensors, entries = self.number("I"), self.number("Q"), self.number("Q")
        if self.data[:4] != b"GGUF" or version not in VERSIONS:
            raise ValueError("it does not begin as one of version 2 or 3 does")
        if max(tensors, entries) > MOST:
            raise ValueError(f"it claims {tensors} tensors and {entries} entries")
        values = {self.text(): self.value(self.number("I")) for _ in range(entries)}
        shapes, stored = {}, 0
        for _ in range(tensors):
            name = self.text()
            shapes[name] = shape = self.shape(name)
            stored += _bytes(name, shape, self.number("I"))
            self.number("Q")  # its place, which the reader of tensors checks
        if stored > len(self.data):
            raise ValueError(f"its tensors would be {stored} bytes, the file has {len(self.data)}")
        return Header(values, shapes)

    def take(self, count: int) -> int:
        """The place of so many bytes, which are passed."""
        if count > len(self.data) - self.at:
            raise ValueError(f"it ends before {count} bytes at {self.at}")
        self.at += count
        return self.at - count

    def number(self, kind: str) -> Any:
        return struct.unpack_from(f"<{kind}", self.data, self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        length = self.number("Q")
        start = self.take(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        if kind not in FORMATS:
            raise ValueError(f"an entry before byte {self.at} has the unknown type {kind}")
        return self.number(FORMATS[kind])

    def array(self, kind: int, length: int) -> int:
        if kind == STRING:
            for _ in range(length):
                self.take(self.number("Q"))
        elif kind in FORMATS:
            self.take(length * struct.calcsize(f"<{FORMATS[kind]}"))
        else:
            raise ValueError(f"an array before byte {self.at} has the unknown type {kind}")
        return length

    def shape(self, name: str) -> tuple[int, ...]:
        count = self.number("I")
        if count > 4:
            raise ValueError(f"{name} has {count} dimensions")
        return tuple(self.number("Q") for _ in range(count))


def _bytes(name: str, shape: tuple[int, ...], kind: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ValueError(f"{name} is of the unknown type {kind}") from None
    return math.prod(shape) // block * size


def check_sizes(header: Header, path: Path) -> None:
    """Raises `ValueError` where the model that the header describes has more layers or weights than the file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = header.values.get("general.architecture")
    told = header.values.get(f"{kind}.block_count")
    layers = len({found[1] for name in header.shapes if (found := re.match(r"blk\.(\d+)\.", name))})
    if told != layers:
        raise ValueError(f"it claims {told} layers and holds {layers}")
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > 2 * header.weights:  # a head that is tied to the embeddings is stored once
        raise ValueError(f"it describes {described} weights and holds {header.weights}")
