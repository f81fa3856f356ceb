"""Sampling whose draws depend on the row alone."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from holdfast.models.packing import hashed


class Sampler:
    """The argmax of log p + Gumbel noise is a draw from p.

    Each row has a generator of its own, seeded by its prompt, so that a response does not depend on what else is in
    its batch, as it would with torch's generator; and on its own device, so that nothing waits for the host.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.seed = temperature, seed
        self.nucleus = TopPLogitsWarper(top_p)

    def draws(self, prompt: list[int], device: torch.device) -> torch.Generator:
        """What a row is sampled with."""
        return torch.Generator(device).manual_seed(hashed(prompt, self.seed))

    def chosen(self, logits: Tensor, draws: list[torch.Generator]) -> Tensor:
        """(n, vocabulary) logits to (n,) tokens."""
        kept = self.nucleus(None, logits / self.temperature)
        noise = torch.empty_like(kept)
        for row, generator in zip(noise, draws, strict=True):
            row.exponential_(generator=generator)
        return (kept - noise.log()).argmax(-1)
