"""Forwards without padding: the tokens of many rows stand one after another in one, and attention alone sees rows.

A row is a prompt and its branches: texts that follow the prompt, each as if it were the only one. A model of Llama's
form runs on them as it is, for its layers look at one token at a time, except in attention, which transformers takes
from a registry; `attention` is ours there while a packing runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "holdfast"
LEAST = 4
Branches = Sequence[list[int]]


class Keys(Protocol):
    """Keys and values that stand before a packing's own, and where its own are kept."""

    def joined(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(n, heads, t, width) of the packing's own -> of all that its queries may see."""
        ...


class Part(NamedTuple):
    """Rows of a grid, and how many of its queries and of the keys they have at most."""

    rows: slice
    queries: int
    keys: int


@dataclass
class Packing:
    """Tokens in rows. (N,): `ids`, `positions`, and the place of each in a grid of (n, t): `row`, `column`. (n,):
    `prompts`, a hash of each row's prompt, and `lengths`, its tokens."""

    ids: Tensor
    positions: Tensor
    row: Tensor
    column: Tensor
    size: tuple[int, int]
    prompts: Tensor
    lengths: Tensor
    # (window or None, whether it must be written out) -> (n, 1, t, all keys), or None where tokens see all before them
    sees: Callable[[int | None, bool], Tensor | None]
    keys: Keys | None = None
    parts: list[Part] = field(default_factory=list)  # rows that attend apart from others; none: all together
    masks: dict[Any, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None, like: Tensor, written: bool) -> Tensor | None:
        """What is added to scores, the same for all layers of a kind; `written` even where it is plainly causal."""
        key = window, like.device, like.dtype
        if key not in self.masks:
            seen = self.sees(window, written)
            if seen is not None:
                unseen = torch.zeros(seen.shape, device=seen.device, dtype=like.dtype)
                seen = unseen.masked_fill_(~seen, torch.finfo(like.dtype).min).to(like.device)
            self.masks[key] = seen
        return self.masks[key]

    def grid(self, flat: Tensor) -> Tensor:
        """(1, heads, N, width) -> (n, heads, t, width)."""
        n, t = self.size
        if n * t == flat.shape[2]:  # no row is shorter than another
            return flat.view(flat.shape[1], n, t, -1).transpose(0, 1)
        found = flat.new_zeros(n, t, flat.shape[1], flat.shape[3])
        found[self.row.to(flat.device), self.column.to(flat.device)] = flat[0].transpose(0, 1)
        return found.transpose(1, 2)

    def flat(self, grid: Tensor) -> Tensor:
        """(n, t, heads, width) -> (1, N, heads, width)."""
        n, t = self.size
        if n * t == len(self.ids):
            return grid.reshape(1, n * t, *grid.shape[2:])
        return grid[self.row.to(grid.device), self.column.to(grid.device)][None]


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    packing: Packing,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: (1, heads, N, width) in, (1, N, heads, width) out."""
    q, k, v = packing.grid(query), packing.grid(key), packing.grid(value)
    if packing.keys is not None:
        k, v = packing.keys.joined(module.layer_idx, k, v)
    mask = packing.mask(sliding_window, q, written=softcap is not None)
    if not packing.parts:
        out = _attended(q, k, v, mask, scaling, softcap)
    else:
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        for rows, queries, keys in packing.parts:
            seen = mask if mask is None else mask[rows, :, :queries, :keys]
            part = q[rows, :, :queries], k[rows, :, :keys], v[rows, :, :keys]
            out[rows, :, :queries] = _attended(*part, seen, scaling, softcap)
    return packing.flat(out.transpose(1, 2)), None


def _attended(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """(n, heads, t, width)."""
    groups, (n, heads, t, width) = q.shape[1] // k.shape[1], q.shape
    grouped = groups > 1 and softcap is None and (mask is None or q.device.type == "cpu")  # by torch's kernel itself
    if t == 1 and not grouped:  # all queries of a head of keys see the same
        q = q.reshape(n, heads // groups, groups, width)
    elif groups > 1 and not grouped:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if softcap is None:
        causal = mask is None and t > 1
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scaling, enable_gqa=grouped)
    else:
        scores = q @ k.transpose(2, 3) * (width**-0.5 if scaling is None else scaling)
        scores = (scores / softcap).tanh() * softcap
        assert mask is not None
        out = (scores + mask).softmax(-1, dtype=torch.float32).to(q.dtype) @ v
    return out.reshape(n, heads, t, -1)


def parted(queries: Sequence[int], keys: Sequence[int], device: torch.device) -> list[Part]:
    """Rows one after another, `LEAST` at least, that have about as many keys, where this saves half of the work and
    more; of a GPU more kernels would cost more. `queries` and `keys`: of each row."""
    if device.type != "cpu" or max(keys) <= 2 * min(keys):
        return []
    found: list[Part] = []
    first = 0
    for row in range(1, len(keys) + 1):
        some = keys[first : row + 1]
        if row == len(keys) or (row - first >= LEAST and max(some) > 2 * min(some)):
            found.append(Part(slice(first, row), max(queries[first:row]), max(keys[first:row])))
            first = row
    work = sum((one.rows.stop - one.rows.start) * one.queries * one.keys for one in found)
    return found if 2 * work < len(keys) * max(queries) * max(keys) else []


AttentionInterface.register(NAME, attention)


@contextmanager
def _ours(config: Any) -> Iterator[None]:
    own = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own


def run(model: Any, packing: Packing, kept: Tensor) -> Tensor:
    """(len(kept), vocabulary) logits after the tokens at these places, in float32."""
    logits: Tensor = _run(model, packing, logits_to_keep=kept).logits
    return logits[0].float()


def states(model: Any, packing: Packing) -> Tensor:
    """(N, hidden): what the head would read."""
    found: Tensor = _run(model.model, packing).last_hidden_state
    return found[0]


def _run(model: Any, packing: Packing, **more: Any) -> Any:
    own = {"input_ids": packing.ids[None], "position_ids": packing.positions[None], "packing": packing}
    with _ours(model.config):
        return model(**own, use_cache=False, **more)


@torch.inference_mode()
def check(model: Any) -> None:
    """Raises `ValueError` for a model that does not run in packings as it does in rows: whose attention is not taken
    from transformers' registry, or whose layers look at more than a token elsewhere."""
    rows = [([1, 2, 3], [[4, 5], [2, 1]]), ([3, 1], [[2], [5, 4, 1]])]
    read = [torch.tensor([p + b[:-1]], device=model.device) for p, branches in rows for b in branches]
    plain = torch.stack([model(input_ids=ids).logits[0, -1] for ids in read]).float().log_softmax(-1)
    packing = packed(rows, model.device)
    ends = torch.tensor([3, 4, 6, 8], device=model.device)  # of each branch, or of the prompt that is all there is
    found = run(model, packing, ends).log_softmax(-1)
    apart = (found - plain).abs().mean()
    if plain.isfinite().all() and not apart < (1e-3 if model.dtype == torch.float32 else 0.1):
        raise ValueError(f"{type(model).__name__} gives other answers where it reads several texts at once")


def hashed(prompt: list[int], start: int = 0) -> int:
    """Names a prompt by its tokens, in 32 bits."""
    return zlib.crc32(torch.tensor(prompt, dtype=torch.long).numpy().tobytes(), start)


def packed(
    rows: Sequence[tuple[list[int], Branches]], device: torch.device, prefix: int = 0, keys: Keys | None = None
) -> Packing:
    """A packing of prompts, whose first `prefix` tokens are in `keys`, each with its branches' tokens but the last:
    nothing follows it."""
    told: list[tuple[int, ...]] = []  # of every token: id, position, row, column, branch
    for place, (prompt, branches) in enumerate(rows):
        own = [(token, position, 0) for position, token in enumerate(prompt[prefix:], prefix)]
        for number, tokens in enumerate(branches, 1):
            own += [(token, position, number) for position, token in enumerate(tokens[:-1], len(prompt))]
        told += [(token, position, place, column, of) for column, (token, position, of) in enumerate(own)]
    flat = torch.tensor(told, device=device).T
    n, t = len(rows), max(one[3] for one in told) + 1
    places, columns = flat[2], flat[3]
    grid = torch.zeros(2, n, t, dtype=torch.long, device=device)
    grid[:, places, columns] = flat[[1, 4]]
    branched = any(sum(len(tokens) > 1 for tokens in branches) > 1 for _, branches in rows)

    def sees(window: int | None, written: bool) -> Tensor | None:
        if not written and not branched and not prefix and (window is None or window >= t):
            return None  # causal, for padding comes last
        at, of = grid
        order = torch.arange(t, device=device)
        own = (order <= order[:, None]) & ((of[:, None] == 0) | (of[:, None] == of[:, :, None]))
        before = torch.ones(n, t, prefix, dtype=torch.bool, device=device)
        seen = torch.cat([before, own], 2)
        if window is not None:
            keys = torch.cat([torch.arange(prefix, device=device).expand(n, -1), at], 1)
            seen = seen & (at[:, :, None] - keys[:, None] < window)
        return seen[:, None]

    each = [sum(max(len(tokens) - 1, 0) for tokens in branches) + len(prompt) - prefix for prompt, branches in rows]
    apart = parted(each, [prefix + own for own in each], device)
    prompts = torch.tensor([(hashed(prompt), len(prompt)) for prompt, _ in rows], device=device)
    return Packing(flat[0], flat[1], places, columns, (n, t), prompts[:, 0], prompts[:, 1], sees, keys, apart)
