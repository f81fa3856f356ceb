"""Exact perturbation: forward weights are written from float32 masters, never added to and subtracted from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from holdfast.zo.noise import rademacher


class Masters:
    """Float32 masters of some tensors, their frozen scales s = rms(W), and the noise that moves them."""

    def __init__(self, tensors: dict[str, nn.Parameter], seed: int) -> None:
        self.tensors, self.seed = list(tensors.values()), seed
        self.values = [p.detach().to(torch.float32, copy=True) for p in self.tensors]
        self.scales = [v.square().mean().sqrt().item() for v in self.values]

    def noise(self, index: int, step: int, query: int) -> Tensor:
        """z of one tensor, in its shape; E zzᵀ = I."""
        value = self.values[index]
        flat = rademacher(value.numel(), seed=self.seed, step=step, query=query, tensor=index, device=value.device)
        return flat.view_as(value)

    @torch.no_grad()
    def write(self, radius: float, step: int, query: int) -> None:
        """Forward weights := round(master + radius · s∘z)."""
        for index, (tensor, value, scale) in enumerate(zip(self.tensors, self.values, self.scales, strict=True)):
            tensor.copy_(value + self.noise(index, step, query) * (radius * scale))

    @torch.no_grad()
    def move(self, radius: float, step: int, query: int) -> None:
        """Masters += radius · s∘z; the forward weights follow at the next `write` or `restore`."""
        for index, (value, scale) in enumerate(zip(self.values, self.scales, strict=True)):
            value.add_(self.noise(index, step, query), alpha=radius * scale)

    @torch.no_grad()
    def restore(self) -> None:
        """Forward weights := round(master), bitwise what they were before any `write`."""
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)
