"""Hooks that add noise to the outputs of modules.

The noise of a token depends on its prompt, its position and its place alone: not on what else is in the batch, how it
is padded, or what ran before.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.models.packing import Packing
from holdfast.zo.kernels import add_noise
from holdfast.zo.layers import decoder_stack
from holdfast.zo.noise import Stream, Target

ROWS = 1024  # of noise per place: what one token takes is one row, and a sequence goes through them in turn


@dataclass(frozen=True)
class How:
    """h + level · s · z, where s is 1, or the rms of the token's h if `relative`; on those of the `prompt`, those
    `generated` after it (whatever follows from a cache), or `all` tokens."""

    level: float
    draw: int
    relative: bool = True
    tokens: str = "all"


@contextmanager
def noise_at(model: Any, places: dict[int, nn.Module], how: How, seed: int, pad: int) -> Iterator[None]:
    """Noise on the outputs of these modules, each with its own stream."""
    noise = _Noise(how, seed, pad)
    with ExitStack() as hooks:
        hooks.callback(model.model.register_forward_pre_hook(noise.locate, with_kwargs=True).remove)
        for place, module in places.items():
            hooks.callback(module.register_forward_hook(noise.hook(place)).remove)
        yield


def places_of(model: nn.Module, place: str) -> list[nn.Module]:
    """Raises `UserError` where a layer has none."""
    layers = list(decoder_stack(model))
    if place == "residual":
        return layers
    found = [[m for name, m in layer.named_children() if place in name] for layer in layers]  # `norm` or `mlp`
    if not all(found):
        raise UserError(f"place={place}: a layer of {type(model).__name__} has no module of that name")
    return [module for modules in found for module in modules]


class _Noise:
    def __init__(self, how: How, seed: int, pad: int) -> None:
        self.level, self.relative, self.tokens = how.level, how.relative, how.tokens
        self.stream = Stream("gaussian", seed, how.draw)
        self.pad = pad
        self.tables: dict[tuple[int, torch.device], Tensor] = {}  # (ROWS, hidden), a place's on each device
        self.starts: Tensor  # (n,): each prompt's first row
        self.rows: dict[torch.device, Tensor] = {}  # (n, t): each token's row, on the devices that ask for it
        self.disturbed: Tensor | bool  # (n, t, 1), or the same for all tokens

    def locate(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before a forward: which row of noise every token takes. A prompt's first row is given by its hash."""
        if "packing" in kwargs:
            self._locate_packed(kwargs["packing"])
            return
        ids, cache = kwargs["input_ids"], kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        mask = kwargs.get("attention_mask")
        if past == 0:  # the one time that the host has to see the tokens
            kept = _before_padding(ids, self.pad) if mask is None else mask.bool()
            prompts = (row[tokens].numpy().tobytes() for row, tokens in zip(ids.cpu(), kept.cpu(), strict=True))
            self.starts = torch.tensor([zlib.crc32(prompt) % ROWS for prompt in prompts], device=ids.device)
        if mask is None:
            positions = torch.arange(past, past + ids.shape[1], device=ids.device)
        else:
            positions = mask.to(ids.device).cumsum(1)[:, past:] - 1
        self.rows = {ids.device: (self.starts[:, None] + positions) % ROWS}
        self.disturbed = self.tokens == "all" or (self.tokens == "generated") == (past > 0)

    def _locate_packed(self, packing: Packing) -> None:
        self.rows = {packing.ids.device: ((packing.prompts[packing.row] + packing.positions) % ROWS)[None]}
        generated = packing.positions >= packing.lengths[packing.row]
        self.disturbed = self.tokens == "all" or (generated == (self.tokens == "generated"))[None, :, None]

    def hook(self, place: int) -> Any:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            hidden: Tensor = output[0] if isinstance(output, tuple) else output  # (n, t, hidden)
            if self.disturbed is False:
                return output
            z = self._table(place, hidden)[self._rows(hidden.device)]
            z = z if self.disturbed is True else z * self.disturbed.to(z.device)
            scale = hidden.float().square().mean(-1, keepdim=True).sqrt() if self.relative else 1.0
            noisy = hidden + (z * scale * self.level).to(hidden.dtype)
            return (noisy, *output[1:]) if isinstance(output, tuple) else noisy

        return add

    def _rows(self, device: torch.device) -> Tensor:
        if device not in self.rows:
            self.rows[device] = next(iter(self.rows.values())).to(device)
        return self.rows[device]

    def _table(self, place: int, hidden: Tensor) -> Tensor:
        key = place, hidden.device
        if key not in self.tables:
            table = torch.zeros(ROWS, hidden.shape[-1], device=hidden.device)
            add_noise([Target(table, table, place, [1.0])], [0], self.stream, keep=False)
            self.tables[key] = table
        return self.tables[key]


def _before_padding(ids: Tensor, pad: int) -> Tensor:
    """(n, t) bool: all tokens but the padding at each row's end."""
    return (ids != pad).flip(1).cumsum(1).flip(1) > 0
