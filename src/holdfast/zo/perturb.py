"""Exact perturbation: forward weights are written from float32 masters, never added to and subtracted from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from holdfast.zo.noise import sign_words, signs


class Masters:
    """Float32 masters of some tensors, their frozen scales s = rms(W), and the noise that moves them."""

    def __init__(self, tensors: dict[str, nn.Parameter], seed: int) -> None:
        self.tensors, self.seed = list(tensors.values()), seed
        self.values = [p.detach().to(torch.float32, copy=True) for p in self.tensors]
        self.chunks = _chunks([v.numel() for v in self.values])
        self.scales = [v.square().mean().sqrt().item() for v in self.values]

    def noise(self, step: int, query: int) -> Iterator[tuple[int, Tensor]]:
        """(index, z) of every tensor, z in its shape; E zzᵀ = I."""
        for chunk in self.chunks:
            sizes = [self.values[index].numel() for index in chunk]
            device = self.values[chunk[0]].device
            words = sign_words(sizes, chunk, seed=self.seed, step=step, query=query, device=device)
            for index, size, stream in zip(chunk, sizes, words, strict=True):
                yield index, signs(stream, size).view_as(self.values[index])

    @torch.no_grad()
    def write(self, radius: float, step: int, query: int) -> None:
        """Forward weights := round(master + radius · s∘z)."""
        for index, z in self.noise(step, query):
            self.tensors[index].copy_(torch.add(self.values[index], z, alpha=radius * self.scales[index]))

    @torch.no_grad()
    def move(self, radius: float, step: int, query: int) -> None:
        """Masters += radius · s∘z; the forward weights follow at the next `write` or `restore`."""
        for index, z in self.noise(step, query):
            self.values[index].add_(z, alpha=radius * self.scales[index])

    @torch.no_grad()
    def restore(self) -> None:
        """Forward weights := round(master), bitwise what they were before any `write`."""
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)


def _chunks(sizes: list[int], most: int = 2**24) -> list[list[int]]:
    """Indices in runs of at most `most` elements: small tensors share a pass, large ones bound its memory."""
    chunks: list[list[int]] = [[]]
    held = 0
    for index, size in enumerate(sizes):
        if chunks[-1] and held + size > most:
            chunks.append([])
            held = 0
        chunks[-1].append(index)
        held += size
    return chunks
