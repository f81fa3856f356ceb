"""The numba kernel. Blocks of noise are made and consumed within the first-level cache, by all threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from holdfast.zo.noise import ELEMENTS, GAUSSIAN_UNIT, MULTIPLIERS, WEYL, WORD, halves

LANES = 32  # Philox blocks made at a time, one per vector lane
FLOAT32, BFLOAT16, FLOAT16, NOWHERE = range(4)
TARGETS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
SERIAL = 2**15  # elements below which threads cost more than they save
M0, M1, W0, W1 = (np.uint64(c) for c in (*MULTIPLIERS, *WEYL))
MASK, UNIT = np.uint64(WORD), np.float32(GAUSSIAN_UNIT)


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
def half_of(typing: Any, value: Any) -> Any:
    """The 16 bits of a float32 rounded to nearest, ties to even, by the processor or LLVM's own routine."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


# Every index below is a loop variable: numba then omits its check for negative indices, and LLVM vectorizes.


@njit(inline="always")
def philox_lanes(words, block, query, tensor, step, key0, key1):  # type: ignore[no-untyped-def]
    """words, (4, LANES) uint64: the blocks from `block` on. The masks tell LLVM that 32-bit products suffice."""
    for lane in range(LANES):
        c0, c1, c2, c3 = (block + np.uint64(lane)) & MASK, query, tensor, step
        k0, k1 = key0, key1
        for _ in range(10):  # unrolled by LLVM, which then vectorizes over the lanes
            product0, product1 = (c0 & MASK) * M0, (c2 & MASK) * M1
            c0, c1 = (product1 >> np.uint64(32)) ^ c1 ^ k0, product1 & MASK
            c2, c3 = (product0 >> np.uint64(32)) ^ c3 ^ k1, product0 & MASK
            k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
        words[0, lane], words[1, lane], words[2, lane], words[3, lane] = c0, c1, c2, c3


@njit(inline="always")
def add_signs(total, words, coefficient):  # type: ignore[no-untyped-def]
    """total, (LANES, 4, 32): 128 elements a block, in words and bits."""
    for lane in range(LANES):
        for word in range(4):
            signs = words[word, lane]
            for bit in range(32):
                total[lane, word, bit] += with_sign_of(coefficient, signs, bit)


@njit(inline="always")
def add_gaussian(total, words, coefficient):  # type: ignore[no-untyped-def]
    """total, (LANES, 2): two elements a block."""
    for half in range(2):
        for lane in range(LANES):
            w, v = words[2 * half, lane], words[2 * half + 1, lane]
            w = w - ((w >> np.uint64(1)) & np.uint64(0x55555555))
            w = (w & np.uint64(0x33333333)) + ((w >> np.uint64(2)) & np.uint64(0x33333333))
            w = (w + (w >> np.uint64(4))) & np.uint64(0x0F0F0F0F)
            w = w + (w >> np.uint64(8))
            ones = (w + (w >> np.uint64(16))) & np.uint64(63)
            integer = ones * np.uint64(65536) + (v & np.uint64(0xFFFF)) + (v >> np.uint64(16))
            z = np.float32(np.int32(integer) - np.int32(16 * 65536 + 65535)) * UNIT
            total[lane, half] += coefficient * z


@njit(inline="always")
def store(total, values, out32, out16, target, keep):  # type: ignore[no-untyped-def]
    """One group's sums, float32, shape (k,), to where they are wanted."""
    if keep:
        for k in range(values.size):
            values[k] = total[k]
    if target == FLOAT32:
        for k in range(out32.size):
            out32[k] = total[k]
    elif target == BFLOAT16:
        for k in range(out16.size):
            bits = bits_of(total[k])
            up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # to nearest, ties to even
            out16[k] = np.uint16((bits + up) >> np.uint32(16))
    elif target == FLOAT16:
        for k in range(out16.size):
            out16[k] = half_of(total[k])


@njit(nogil=True, cache=True, error_model="numpy")
def run(values, out32, out16, target, keep, first, last, coefficients, queries, gaussian, tensor, step, key0, key1):  # type: ignore[no-untyped-def]
    """Groups `first` to `last` of LANES blocks each; the last group of a tensor may be partly outside it."""
    size = LANES * (2 if gaussian else 128)
    words = np.empty((4, LANES), np.uint64)
    total = np.empty(size, np.float32)
    normal = total[: 2 * LANES].reshape(LANES, 2)
    signed = total[: size // 128 * 128].reshape(size // 128, 4, 32)
    for group in range(first, last):
        start = group * size
        end = min(start + size, values.size)
        source = values[start:end]
        for k in range(source.size):
            total[k] = source[k]
        for i in range(coefficients.size):
            philox_lanes(words, np.uint64(group * LANES), queries[i], tensor, step, key0, key1)
            if gaussian:
                add_gaussian(normal, words, coefficients[i])
            else:
                add_signs(signed, words, coefficients[i])
        store(total, source, out32[start:end], out16[start:end], target, keep)


def add_noise(
    values: Tensor,
    out: Tensor | None,
    coefficients: Sequence[float],
    queries: Sequence[int],
    *,
    kind: str,
    seed: int,
    step: int,
    tensor: int,
    keep: bool,
) -> None:
    """The reference's contract; `values` and `out` are contiguous."""
    target = NOWHERE if out is None else TARGETS[out.dtype]
    flat = values.detach().view(-1).numpy()
    out32 = out.detach().view(-1).numpy() if out is not None and target == FLOAT32 else np.empty(0, np.float32)
    narrow = target in (BFLOAT16, FLOAT16)
    out16 = out.detach().view(-1).view(torch.uint16).numpy() if narrow else np.empty(0, np.uint16)  # type: ignore[union-attr]
    key0, key1 = halves(seed)
    names = (*map(np.uint64, (tensor, step, key0, key1)),)
    scaled, asked = np.array(coefficients, np.float32), np.array(queries, np.uint64)

    def part(first: int, last: int) -> None:
        run(flat, out32, out16, target, keep, first, last, scaled, asked, kind == "gaussian", *names)

    groups = -(-flat.size // (LANES * ELEMENTS[kind]))
    threads = torch.get_num_threads() if flat.size > SERIAL else 1
    if threads == 1:
        part(0, groups)
    else:
        edges = [groups * t // threads for t in range(threads + 1)]
        list(_pool(threads).map(part, edges[:-1], edges[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "zo")
