"""Counter-based noise: every element is a pure function of integers.

Philox-4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011) in torch integer
arithmetic. No generator has a state, and torch's global one is never touched. This is the reference that
the kernels reproduce bit for bit; a stream is named by (seed, step, query, tensor), the seed of 64 bits and
the others of 32.

Both kinds of noise have mean 0 and variance 1:

`rademacher`: element k is the sign in bit k mod 32 of word ⌊k/32⌋ of the stream, 0 for +1.
`gaussian`: element k is made of words w = 2k and v = 2k+1 as (popcount(w) − 16) + (v mod 2¹⁶ + ⌊v/2¹⁶⌋ − 65535) / 2¹⁶,
    divided by its standard deviation: a binomial of 32 coins, its steps bridged by a triangular variate. In
    units of 2⁻¹⁶ it is an integer, so that its bits depend on no libm. Its kurtosis is 2.94, its range ±5.9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
NOISES = ("rademacher", "gaussian")
ELEMENTS = {"rademacher": 128, "gaussian": 2}  # per Philox block of four words
# One over the standard deviation of the gaussian's integer, rounded to float32.
GAUSSIAN_UNIT = torch.tensor(1 / math.sqrt(8 * 2**32 + (2**32 - 1) / 6), dtype=torch.float32).item()


# Blocks that no tensor is long enough to reach: their words decide what is about whole tensors or queries.
SUBSET, COIN, DIRECTION, SHIFT = WORD, WORD - 1, WORD - 2, WORD - 3


@dataclass(frozen=True)
class Stream:
    """What the noise of all tensors and queries of one step has in common."""

    kind: str
    seed: int
    step: int

    @property
    def key(self) -> tuple[int, int]:
        """The two 32-bit words of the seed, low word first."""
        return self.seed & WORD, self.seed >> 32 & WORD


class Target(NamedTuple):
    """A tensor, and what is to be added to it."""

    values: Tensor  # float32, contiguous
    out: Tensor  # of any floating dtype and as many elements
    tensor: int  # its place in the counter
    coefficients: Sequence[float]  # float32 numbers, one a query


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds on four counters of shape (n,), int64 holding 32-bit words; gives four words of shape (n,)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 by 32 bit product; in halves, for int64 has no unsigned product."""
    upper, lower = a * (b >> 16), a * (b & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (lower + ((upper & 0xFFFF) << 16)) & WORD


def noise(count: int, stream: Stream, *, tensor: int, query: int, device: torch.device, first: int = 0) -> Tensor:
    """Elements first … first + count, float32, shape (count,)."""
    per_block = ELEMENTS[stream.kind]
    start, stop = first // per_block, -(-(first + count) // per_block)
    block = torch.arange(start, stop, device=device)
    same = torch.zeros_like(block)
    words = torch.stack(philox((block, same + query, same + tensor, same + stream.step), stream.key), dim=1)
    values = _signs(words) if stream.kind == "rademacher" else _gaussian(words)
    return values[first - start * per_block :][:count]


def words(block: int, stream: Stream, *, tensors: Sequence[int], queries: Sequence[int]) -> Tensor:
    """The first word of one block for every query and tensor: int64, shape (queries, tensors), on the CPU."""
    query = torch.tensor(list(queries), dtype=torch.int64).repeat_interleave(len(tensors))
    tensor = torch.tensor(list(tensors), dtype=torch.int64).repeat(len(queries))
    same = torch.zeros_like(query)
    found, *_ = philox((same + block, query, tensor, same + stream.step), stream.key)
    return found.view(len(queries), len(tensors))


def _signs(words: Tensor) -> Tensor:
    """(blocks, 4) words to (128 · blocks,) signs."""
    octets = words.to(torch.int32).view(torch.uint8).to(torch.int32)  # little-endian: the low octet first
    return sign_table(words.device).index_select(0, octets.flatten()).flatten()


def _gaussian(words: Tensor) -> Tensor:
    """(blocks, 4) words to (2 · blocks,) normal variates."""
    w, v = words.reshape(-1, 2).unbind(1)
    octets = w.to(torch.int32).view(torch.uint8).reshape(-1, 4).to(torch.int32)
    ones = (4 - sign_table(w.device).sum(1).to(torch.int64) // 2)[octets].sum(1)  # 8 signs of sum 8 − 2·ones
    integer = (ones - 16) * 2**16 + (v & 0xFFFF) + (v >> 16) - 65535
    return integer.to(torch.float32) * GAUSSIAN_UNIT


@cache
def sign_table(device: torch.device) -> Tensor:
    """(256, 8): the signs of the eight bits of every octet."""
    octets = torch.arange(256, device=device)[:, None]
    return (1 - 2 * (octets >> torch.arange(8, device=device) & 1)).to(torch.float32)


def add_noise(targets: Sequence[Target], queries: Sequence[int], stream: Stream, *, keep: bool) -> None:
    """`out` := `values` + Σ coefficient · z(query), summed in this order, each product and sum rounded to float32,
    the last sum once more to the dtype of `out`. `keep` writes it back into `values` too."""
    for values, out, tensor, coefficients in targets:
        total = values if keep else values.clone()
        for coefficient, query in zip(coefficients, queries, strict=True):
            z = noise(values.numel(), stream, tensor=tensor, query=query, device=values.device)
            total.add_(z.mul_(coefficient).view_as(values))
        out.copy_(total)
