"""Which logits of a packing tell of its branches, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.models.packing import Branches

CACHED = 2**18  # logits at once, which stay in a processor's cache


@dataclass(frozen=True)
class Targets:
    """Of packed rows: (k,) places whose logits are needed, (n,) where each row's prompt ends among them, and for every
    token of every branch where it is told from and which it is."""

    kept: Tensor
    ends: Tensor
    sources: Tensor
    tokens: Tensor
    lengths: list[list[int]]

    @classmethod
    def of(cls, rows: Sequence[tuple[list[int], Branches]], prefix: int, device: torch.device) -> Targets:
        kept: list[int] = []
        ends, sources, tokens, lengths, first = [], [], [], [], 0
        for prompt, branches in rows:
            first += len(prompt) - prefix
            ends.append(len(kept))
            kept.append(first - 1)
            for branch in branches:
                sources += [ends[-1], *range(len(kept), len(kept) + len(branch) - 1)][: len(branch)]
                kept += range(first, first + len(branch) - 1)
                first += max(len(branch) - 1, 0)
                tokens += branch
            lengths.append(list(map(len, branches)))
        made = [torch.tensor(one, dtype=torch.long, device=device) for one in (kept, ends, sources, tokens)]
        return cls(made[0], made[1], made[2], made[3], lengths)

    def logprobs(self, logits: Tensor) -> Tensor:
        """Of every token of every branch, one after another."""
        some = max(1, CACHED // logits.shape[-1])
        total = torch.cat([rows.logsumexp(-1) for rows in logits.split(some)])
        return logits[self.sources, self.tokens] - total[self.sources]

    def split(self, flat: Tensor) -> list[list[Tensor]]:
        """By row and branch."""
        parts = iter(flat.split([length for row in self.lengths for length in row]))
        return [[next(parts) for _ in row] for row in self.lengths]
