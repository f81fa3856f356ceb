"""The Triton kernel: one launch for all tensors of a device, each program one tile of one of them.

A Philox block is made once and shared by the elements that it decides, so that for Rademacher noise bandwidth is the
limit and not arithmetic. What passes through is many times the cache, and is told not to stay there.
`enable_fp_fusion=False` keeps a product and its sum two roundings, as in the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from holdfast.zo.noise import GAUSSIAN_UNIT, MULTIPLIERS, WEYL, Stream, Target

TILE = 2048  # elements a program
ALIGNMENT = 16  # of addresses in bytes, and of lengths in elements
WARPS = 4
OUT = {torch.float32: tl.float32, torch.bfloat16: tl.int16, torch.float16: tl.float16}  # bfloat16 by its bits
M0, M1, W0, W1 = (tl.constexpr(c) for c in (*MULTIPLIERS, *WEYL))
UNIT = tl.constexpr(GAUSSIAN_UNIT)


@triton.jit
def philox(block, query, tensor, step, key0, key1):  # type: ignore[no-untyped-def]
    """Ten rounds on uint32; gives the four words of each block."""
    c0 = block
    c1 = tl.zeros_like(block) + query
    c2 = tl.zeros_like(block) + tensor
    c3 = tl.zeros_like(block) + step
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, tl.full(c0.shape, M0, tl.uint32)), c0 * tl.full(c0.shape, M0, tl.uint32)
        high1, low1 = tl.umulhi(c2, tl.full(c2.shape, M1, tl.uint32)), c2 * tl.full(c2.shape, M1, tl.uint32)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += tl.full((), W0, tl.uint32)
        key1 += tl.full((), W1, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def normal(w, v):  # type: ignore[no-untyped-def]
    """A normal variate of two words."""
    w = w - ((w >> 1) & 0x55555555)
    w = (w & 0x33333333) + ((w >> 2) & 0x33333333)
    w = (w + (w >> 4)) & 0x0F0F0F0F
    ones = (w * 0x01010101) >> 24
    integer = (ones << 16) + (v & 0xFFFF) + (v >> 16)  # below 2³²; what is subtracted makes it signed
    return (integer.to(tl.int32) - (16 * 65536 + 65535)).to(tl.float32) * UNIT


@triton.jit(
    do_not_specialize=["count", "step", "key0", "key1"],
    do_not_specialize_on_alignment=["table", "owners", "asked", "coefficients"],
)
def kernel(  # type: ignore[no-untyped-def]
    table, owners, asked, coefficients, count, step, key0, key1,
    KEEP: tl.constexpr, OUT: tl.constexpr, GAUSSIAN: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """table, (n, 5) int64: addresses of values and out, elements, first tile, place in the counter. owners, (tiles,)
    int32: the row of each tile. asked, (count,), and coefficients, (n, count): int32, the bits of uint32 and float32.

    No number is a constant of the compiler's, as 1 and multiples of 16 would be: it would compile anew for them, and
    a constant has no bits to reinterpret.
    """
    here = tl.program_id(0)
    owner = tl.load(owners + here)
    row = table + 5 * owner
    values, out = tl.load(row).to(tl.pointer_type(tl.float32)), tl.load(row + 1).to(tl.pointer_type(OUT))
    first = (here - tl.load(row + 3)) * TILE
    left = tl.load(row + 2) - first
    if ALIGNED:  # the compiler cannot see it: one thread may load 16 bytes at once
        values, out, left = tl.multiple_of(values, 16), tl.multiple_of(out, 16), tl.multiple_of(left, 16)
    tensor, step = tl.load(row + 4).to(tl.uint32), step.to(tl.uint32)
    key0, key1 = key0.to(tl.uint32), key1.to(tl.uint32)

    BLOCKS: tl.constexpr = TILE // 2 if GAUSSIAN else TILE // 128
    blocks = (first // (TILE // BLOCKS)).to(tl.uint32) + tl.arange(0, BLOCKS).to(tl.uint32)
    bit = tl.arange(0, 32)[None, None, None, :]
    if GAUSSIAN:
        at = tl.arange(0, TILE)
    else:  # 128 elements a block, in words, two by two, and bits
        upper, lower = tl.arange(0, 2)[None, :, None, None], tl.arange(0, 2)[None, None, :, None]
        at = 128 * tl.arange(0, BLOCKS)[:, None, None, None] + 64 * upper + 32 * lower + bit
    values, out, inside = values + first + at, out + first + at, at < left

    total = tl.load(values, mask=inside, other=0.0, eviction_policy="evict_first")
    for i in range(count):
        query = tl.load(asked + i).to(tl.uint32, bitcast=True)
        coefficient = tl.load(coefficients + owner * count + i)
        w0, w1, w2, w3 = philox(blocks, query, tensor, step, key0, key1)
        if GAUSSIAN:
            z = normal(tl.interleave(w0, w2), tl.interleave(w1, w3))
            total = total + coefficient.to(tl.float32, bitcast=True) * z
        else:  # a word's bit, moved up to that of the coefficient's sign: the product, exactly
            words = tl.join(tl.join(w0, w2), tl.join(w1, w3))[:, :, :, None]
            sign = (words << (31 - bit).to(tl.uint32)) & 0x80000000
            total = total + (coefficient.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    if KEEP:
        tl.store(values, total, mask=inside, cache_modifier=".cs")
    if OUT is tl.int16:  # bfloat16, to nearest, ties to even, in integers: Triton's interpreter truncates
        bits = total.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16)
    else:
        rounded = total.to(OUT)
    tl.store(out, rounded, mask=inside, cache_modifier=".cs")


def add_noise(targets: Sequence[Target], queries: Sequence[int], stream: Stream, *, keep: bool) -> None:
    """The reference's contract; `values` and `out` are contiguous and on one device, which need not be the current
    one. The host never waits: what it sends comes from pinned memory."""
    device = targets[0].out.device
    if device.type == "cuda":
        with torch.cuda.device(device):
            _launched(targets, queries, stream, keep, device)
    else:  # Triton's interpreter
        _launched(targets, queries, stream, keep, device)


def _launched(
    targets: Sequence[Target], queries: Sequence[int], stream: Stream, keep: bool, device: torch.device
) -> None:
    jobs: dict[tuple[Any, bool], list[Target]] = {}
    for target in targets:
        aligned = not (target.values.data_ptr() | target.out.data_ptr() | target.out.numel()) % ALIGNMENT
        jobs.setdefault((OUT[target.out.dtype], aligned), []).append(target)
    for (out, aligned), job in jobs.items():
        table, owners = _table(
            tuple((t.values.data_ptr(), t.out.data_ptr(), t.out.numel(), t.tensor) for t in job), device
        )
        scaled = np.array([t.coefficients for t in job], np.float32).reshape(-1)
        asked = _sent(np.concatenate([np.array(queries, np.uint32).view(np.int32), scaled.view(np.int32)]), device)
        kernel[(len(owners),)](
            table, owners, asked, asked[len(queries) :], len(queries), *map(_signed, (stream.step, *stream.key)),
            KEEP=keep, OUT=out, GAUSSIAN=stream.kind == "gaussian", ALIGNED=aligned, TILE=TILE,
            enable_fp_fusion=False, num_warps=WARPS,
        )  # fmt: skip


@lru_cache(maxsize=1024)
def _table(rows: tuple[tuple[int, int, int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(n, 5) int64 for the kernel and (tiles,) int32; kept, for the tensors of a run are the same at every step."""
    tiles = [-(-count // TILE) for _, _, count, _ in rows]
    first = np.cumsum([0, *tiles])[:-1]
    table = np.array([(*row[:3], at, row[3]) for row, at in zip(rows, first, strict=True)], np.int64)
    owners = torch.arange(len(rows), dtype=torch.int32, device=device)
    return _sent(table, device), owners.repeat_interleave(_sent(np.array(tiles), device), output_size=sum(tiles))


def _sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    found = torch.from_numpy(numbers)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found


def _signed(word: int) -> int:
    """The int32 of the same bits: of one type for every value, so that one compilation serves all."""
    return word - 2**32 if word >= 2**31 else word
