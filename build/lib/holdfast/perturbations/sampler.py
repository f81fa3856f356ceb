"""Sampling whose draws depend on the row alone."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor
from transformers import LogitsProcessor, TopPLogitsWarper


class Sampler(LogitsProcessor):
    """Turns greedy decoding into sampling: the argmax of log p + Gumbel noise is a draw from p.

    The noise of a step depends on the row's own tokens and the seed alone, so that a response does not depend on
    what else is in its batch, as it would with torch's generator.
    """

    def __init__(self, temperature: float, top_p: float, seed: int, pad: int) -> None:
        self.temperature, self.seed, self.pad = temperature, seed, pad
        self.nucleus = TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(n, t) ids so far and (n, vocabulary) logits to perturbed logits."""
        logits = self.nucleus(input_ids, scores.float() / self.temperature)
        return logits + torch.stack([self._gumbel(row, scores.shape[1]) for row in input_ids.cpu()]).to(scores.device)

    def _gumbel(self, row: Tensor, size: int) -> Tensor:
        tokens = row[row != self.pad].numpy().tobytes()
        generator = torch.Generator().manual_seed(zlib.crc32(tokens, self.seed))
        return -torch.empty(size).exponential_(generator=generator).log()
