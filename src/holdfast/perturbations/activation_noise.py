"""Gaussian noise on the activations of every decoder layer."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.perturbations.point import Arm, Bench, Point
from holdfast.zo.kernels import add_noise
from holdfast.zo.noise import Stream, Target

ROWS = 1024  # of noise per place: what one token takes is one row, and a sequence goes through them in turn


@contextmanager
def activation_noise(model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
    """h + level · s · z. `scale`: s is `relative` (the rms of the token's h) or `absolute` (1).

    `place`: `residual` (the output of each layer), `norm` (of each normalization in it) or `mlp`. `tokens`: those
    of the `prompt`, those `generated` after it (whatever follows from a cache), or `all`.

    The noise of a token depends on its prompt, its position and its place alone: not on what else is in the batch,
    how it is padded, or what ran before.
    """
    places = dict(enumerate(_places(model.model.layers, point.options["place"])))
    with noise_at(model, places, point, bench.noise_seed):
        yield Arm(model)


@contextmanager
def noise_at(model: Any, places: dict[int, nn.Module], point: Point, seed: int) -> Iterator[None]:
    """Noise on the outputs of these modules, each with its own stream."""
    noise = _Noise(point, seed)
    with ExitStack() as hooks:
        hooks.callback(model.model.register_forward_pre_hook(noise.locate, with_kwargs=True).remove)
        for place, module in places.items():
            hooks.callback(module.register_forward_hook(noise.hook(place)).remove)
        yield


def _places(layers: Any, place: str) -> list[nn.Module]:
    if place == "residual":
        return list(layers)
    if place == "mlp":
        return [layer.mlp for layer in layers]
    return [m for layer in layers for name, m in layer.named_children() if "norm" in name]


class _Noise:
    def __init__(self, point: Point, seed: int) -> None:
        self.level, self.relative = point.level, point.options["scale"] == "relative"
        self.tokens = point.options["tokens"]
        self.stream = Stream("gaussian", seed, point.draw)
        self.tables: dict[int, Tensor] = {}  # place -> (ROWS, hidden)
        self.starts: Tensor  # (n,): each prompt's first row
        self.rows: Tensor  # (n, t): each token's row

    def locate(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before a forward: which row of noise every token takes. A prompt begins where its own hash says."""
        ids, cache = kwargs["input_ids"], kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        mask = kwargs.get("attention_mask")
        mask = torch.ones(len(ids), past + ids.shape[1], dtype=torch.long) if mask is None else mask.cpu()
        if past == 0:
            prompts = (row[kept.bool()].numpy().tobytes() for row, kept in zip(ids.cpu(), mask, strict=True))
            self.starts = torch.tensor([zlib.crc32(prompt) % ROWS for prompt in prompts])
        positions = mask.cumsum(1)[:, past:] - 1
        self.rows = ((self.starts[:, None] + positions) % ROWS).to(ids.device)
        self.on = self.tokens == "all" or (self.tokens == "generated") == (past > 0)

    def hook(self, place: int) -> Any:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            hidden: Tensor = output[0] if isinstance(output, tuple) else output  # (n, t, hidden)
            if not self.on:
                return output
            z = self._table(place, hidden)[self.rows]
            scale = hidden.float().square().mean(-1, keepdim=True).sqrt() if self.relative else 1.0
            noisy = hidden + (z * scale * self.level).to(hidden.dtype)
            return (noisy, *output[1:]) if isinstance(output, tuple) else noisy

        return add

    def _table(self, place: int, hidden: Tensor) -> Tensor:
        if place not in self.tables:
            table = torch.zeros(ROWS, hidden.shape[-1], device=hidden.device)
            add_noise([Target(table, table, place, [1.0])], [0], self.stream, keep=False)
            self.tables[place] = table
        return self.tables[place]
