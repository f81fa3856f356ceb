"""Counter-based noise: every element is a pure function of integers.

Philox-4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011) in torch integer
arithmetic. No generator has a state, and torch's global one is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


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


def sign_words(
    counts: Sequence[int], tensors: Sequence[int], *, seed: int, step: int, query: int, device: torch.device
) -> list[Tensor]:
    """The sign bits of several tensors in one pass: for each its 32-bit words, int32, shape (4⌈count/128⌉,)."""
    blocks = [(count + 127) // 128 for count in counts]
    block = torch.cat([torch.arange(n, device=device) for n in blocks])
    tensor = torch.repeat_interleave(torch.tensor(tensors, device=device), torch.tensor(blocks, device=device))
    same = torch.zeros_like(block)
    words = philox((block, same + query, tensor, same + step), (seed & WORD, seed >> 32 & WORD))
    stream = torch.stack(words, dim=1).to(torch.int32)  # (blocks, 4); the conversion keeps the low 32 bits
    return [part.reshape(-1) for part in stream.split(blocks)]


def signs(words: Tensor, count: int) -> Tensor:
    """float32 ±1, shape (count,): element k is bit k mod 32 of word ⌊k/32⌋, 0 for +1."""
    octets = words.view(torch.uint8).to(torch.int32)  # little-endian: the low octet first
    return _table(words.device).index_select(0, octets).reshape(-1)[:count]


@cache
def _table(device: torch.device) -> Tensor:
    """(256, 8): the signs of the eight bits of every octet."""
    octets = torch.arange(256, device=device)[:, None]
    return (1 - 2 * (octets >> torch.arange(8, device=device) & 1)).to(torch.float32)


def rademacher(count: int, *, seed: int, step: int, query: int, tensor: int, device: torch.device) -> Tensor:
    """Signs of shape (count,), float32 ±1; the four integers (32 bits each, the seed 64) name the stream."""
    (words,) = sign_words([count], [tensor], seed=seed, step=step, query=query, device=device)
    return signs(words, count)
