"""Gaussian noise on the residual stream after every decoder layer, at all tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def activation_noise(model: Any, level: float, seed: int) -> Iterator[Any]:
    """h + level · rms(h) · z, the rms over the hidden size of each token.

    A forward over whole prompts restarts the noise, so that a batch meets the same noise whatever ran before
    it; the tokens that follow from its cache continue it.
    """
    generators: list[torch.Generator] = []

    def restart(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            for layer, generator in enumerate(generators):
                generator.manual_seed(seed * 1000 + layer)

    def add_noise(generator: torch.Generator) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden: Tensor = output[0] if isinstance(output, tuple) else output  # (batch, tokens, hidden)
            z = torch.randn(hidden.shape, generator=generator).to(hidden)
            noisy = hidden + z * (level * hidden.float().square().mean(-1, keepdim=True).sqrt()).to(hidden)
            return (noisy, *output[1:]) if isinstance(output, tuple) else noisy

        return hook

    with ExitStack() as hooks:
        hooks.callback(model.model.register_forward_pre_hook(restart, with_kwargs=True).remove)
        for layer in model.model.layers:
            generators.append(torch.Generator())
            hooks.callback(layer.register_forward_hook(add_noise(generators[-1])).remove)
        yield model
