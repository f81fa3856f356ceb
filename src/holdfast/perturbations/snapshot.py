"""Bitwise restoration of what a perturbation overwrites."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from holdfast.zo import weight_groups
from holdfast.zo.layers import decoder_layers


def decoder_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """All matrices of the decoder layers, by name; embeddings and head are left out."""
    groups = weight_groups(model)
    return {name: p for layer in decoder_layers(groups) for name, p in groups[layer].items()}


@contextmanager
def restored(tensors: dict[str, nn.Parameter]) -> Iterator[None]:
    """Keep a copy, and copy it back at the end: noise is never subtracted."""
    copies = {name: p.detach().clone() for name, p in tensors.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in tensors.items():
                p.copy_(copies[name])
