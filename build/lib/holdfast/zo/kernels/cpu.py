"""The numba kernel. Blocks of noise are made and consumed within the first-level cache, by all threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from holdfast.zo.noise import ELEMENTS, GAUSSIAN_UNIT, MULTIPLIERS, WEYL, WORD, Stream, Target

LANES = 32  # Philox blocks made at a time, one per vector lane
LINE = 32  # bytes that are written to memory at a time
FLOAT32, BFLOAT16, FLOAT16 = range(3)
DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
SERIAL = 2**15  # elements below which threads cost more than they save
M0, M1, W0, W1 = (np.uint64(c) for c in (*MULTIPLIERS, *WEYL))
MASK, HALF, UNIT = np.uint64(WORD), np.uint64(32), np.float32(GAUSSIAN_UNIT)


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """An address as a pointer."""
    return types.voidptr(types.int64), lambda context, builder, signature, args: builder.inttoptr(
        args[0], context.get_value_type(types.voidptr)
    )


@intrinsic
def stream(typing: Any, sink: Any, source: Any) -> Any:
    """LINE bytes from one aligned address to another, past the caches: memory that is overwritten whole need not
    be read first, which is a third of the traffic of a write."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.FloatType(), LINE // 4).as_pointer()
        sink, source = (builder.inttoptr(address, line) for address in args)
        store = builder.store(builder.load(source, align=LINE), sink, align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def bits_of(typing: Any, value: Any) -> Any:
    """The 32 bits of a float32."""
    return types.uint32(types.float32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.IntType(32)
    )


@intrinsic
def with_sign_of(typing: Any, value: Any, word: Any, bit: Any) -> Any:
    """A float32, negated if that bit of the word is set; in 32-bit lanes, where numba would widen to 64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        narrow = ir.IntType(32)
        value, word, bit = args
        up = builder.sub(ir.Constant(narrow, 31), builder.trunc(bit, narrow))
        sign = builder.and_(builder.shl(builder.trunc(word, narrow), up), ir.Constant(narrow, 0x80000000))
        return builder.bitcast(builder.xor(builder.bitcast(value, narrow), sign), ir.FloatType())

    return types.float32(types.float32, types.uint64, types.int64), generate


@intrinsic
def float_of(typing: Any, word: Any) -> Any:
    """The low 32 bits as a signed integer, in float32; numba would convert from 64, which vectors cannot."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(builder.trunc(args[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.uint64), generate


@intrinsic
def half_of(typing: Any, value: Any) -> Any:
    """The 16 bits of a float32 rounded to nearest, ties to even, by the processor or LLVM's own routine."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


# Every index below is a loop variable: numba then omits its check for negative indices, and LLVM vectorizes.


@njit(inline="always")
def philox_round(state):  # type: ignore[no-untyped-def]
    """Of four counters and two keys; the masks tell LLVM that 32-bit products suffice."""
    c0, c1, c2, c3, k0, k1 = state
    product0, product1 = (c0 & MASK) * M0, (c2 & MASK) * M1
    c0, c1 = (product1 >> HALF) ^ c1 ^ k0, product1 & MASK
    c2, c3 = (product0 >> HALF) ^ c3 ^ k1, product0 & MASK
    return c0, c1, c2, c3, (k0 + W0) & MASK, (k1 + W1) & MASK


@njit(inline="always")
def philox_lanes(words, block, query, tensor, step, key0, key1):  # type: ignore[no-untyped-def]
    """words, (4, LANES) uint64: the blocks from `block` on. The ten rounds are no loop, for LLVM vectorizes over the
    lanes only what holds no other loop."""
    for lane in range(LANES):
        state = ((block + np.uint64(lane)) & MASK, query, tensor, step, key0, key1)
        state = philox_round(philox_round(philox_round(philox_round(philox_round(state)))))
        state = philox_round(philox_round(philox_round(philox_round(philox_round(state)))))
        words[0, lane], words[1, lane], words[2, lane], words[3, lane] = state[0], state[1], state[2], state[3]


@njit(inline="always")
def add_signs(total, words, coefficient):  # type: ignore[no-untyped-def]
    """total, (LANES, 4, 32): 128 elements a block, in words and bits."""
    for lane in range(LANES):
        for word in range(4):
            signs = words[word, lane]
            for bit in range(32):
                total[lane, word, bit] += with_sign_of(coefficient, signs, bit)


@njit(inline="always")
def normal(w, v):  # type: ignore[no-untyped-def]
    """A normal variate of two words."""
    w = w - ((w >> np.uint64(1)) & np.uint64(0x55555555))
    w = (w & np.uint64(0x33333333)) + ((w >> np.uint64(2)) & np.uint64(0x33333333))
    w = (w + (w >> np.uint64(4))) & np.uint64(0x0F0F0F0F)
    w = w + (w >> np.uint64(8))
    ones = (w + (w >> np.uint64(16))) & np.uint64(63)
    integer = (ones << np.uint64(16)) + (v & np.uint64(0xFFFF)) + (v >> np.uint64(16))
    return float_of(integer - np.uint64(16 * 65536 + 65535)) * UNIT


@njit(inline="always")
def add_gaussian(total, words, coefficient):  # type: ignore[no-untyped-def]
    """total, (2 · LANES,): two elements a block."""
    for lane in range(LANES):
        even, odd = np.uint64(2) * np.uint64(lane), np.uint64(2) * np.uint64(lane) + np.uint64(1)
        total[even] += coefficient * normal(words[0, lane], words[1, lane])
        total[odd] += coefficient * normal(words[2, lane], words[3, lane])


@njit(inline="always")
def round_into(page, total, kind):  # type: ignore[no-untyped-def]
    """page, uint8: the sums in the dtype of the weights."""
    if kind == FLOAT32:
        singles = page.view(np.float32)
        for k in range(total.size):
            singles[k] = total[k]
        return
    halves = page.view(np.uint16)
    if kind == BFLOAT16:
        for k in range(total.size):
            bits = bits_of(total[k])
            up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # to nearest, ties to even
            halves[k] = np.uint16((bits + up) >> np.uint32(16))
    else:
        for k in range(total.size):
            halves[k] = half_of(total[k])


@njit(inline="always")
def aligned(size):  # type: ignore[no-untyped-def]
    """Bytes at an address that is a multiple of LINE."""
    room = np.empty(size + LINE, np.uint8)
    return room[-room.ctypes.data % LINE :][:size]


@njit(nogil=True, cache=True, error_model="numpy")
def run(first, last, targets, names, coefficients, queries, keep, gaussian, step, key0, key1):  # type: ignore[no-untyped-def]
    """Groups `first` to `last` of LANES blocks each, counted through all targets; the last group of a target may
    be partly outside it. targets, (n, 5): see `add_noise`."""
    size = LANES * (2 if gaussian else 128)
    words = np.empty((4, LANES), np.uint64)
    total = aligned(4 * size).view(np.float32)
    signed = total[: size // 128 * 128].reshape(size // 128, 4, 32)
    page = aligned(4 * size)
    for t in range(targets.shape[0]):
        begin, count, source, sink, kind = targets[t]
        width = 4 if kind == FLOAT32 else 2
        values = carray(pointer(source), (count,), np.float32)
        out = carray(pointer(sink), (width * count,), np.uint8)
        for group in range(max(first - begin, 0), min(last - begin, (count + size - 1) // size)):
            start = group * size
            part = values[start : start + size]
            for k in range(part.size):
                total[k] = part[k]
            for i in range(queries.size):
                philox_lanes(words, np.uint64(group * LANES), queries[i], names[t], step, key0, key1)
                if gaussian:
                    add_gaussian(total, words, coefficients[t, i])
                else:
                    add_signs(signed, words, coefficients[t, i])
            if keep:
                for k in range(part.size):
                    part[k] = total[k]
            round_into(page, total, kind)
            if sink % LINE == 0 and part.size == size:
                for at in range(0, width * size, LINE):
                    stream(sink + width * start + at, page.ctypes.data + at)
            else:
                its = out[width * start : width * (start + size)]
                for at in range(its.size):
                    its[at] = page[at]


def add_noise(targets: Sequence[Target], queries: Sequence[int], stream: Stream, *, keep: bool) -> None:
    """The reference's contract; `values` and `out` are contiguous.

    All targets are one job, cut into as many parts as torch has threads: a model has hundreds of matrices, and
    handing each of them to threads would cost as much as the small ones take.
    """
    size = LANES * ELEMENTS[stream.kind]
    rows, groups = [], 0  # a row: its first group, elements, address of values, address of out, dtype of out
    for t in targets:
        rows.append((groups, t.values.numel(), t.values.data_ptr(), t.out.data_ptr(), DTYPES[t.out.dtype]))
        groups += -(-t.values.numel() // size)
    table = np.array(rows, np.int64)
    names = np.array([t.tensor for t in targets], np.uint64)
    scaled = np.array([t.coefficients for t in targets], np.float32).reshape(len(targets), len(queries))
    asked = np.array(queries, np.uint64)
    words = (*map(np.uint64, (stream.step, *stream.key)),)

    def part(first: int, last: int) -> None:
        run(first, last, table, names, scaled, asked, keep, stream.kind == "gaussian", *words)

    threads = torch.get_num_threads() if groups * size > SERIAL else 1
    edges = [groups * t // threads for t in range(threads + 1)]
    mine, *others = pairwise(edges)
    waiting = [_pool().submit(part, *ends) for ends in others]
    part(*mine)
    for one in waiting:
        one.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="zo")
