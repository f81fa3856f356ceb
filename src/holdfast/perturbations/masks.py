"""Weights that are set to zero, and the inputs that say which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.models.packing import packed, states
from holdfast.perturbations.point import Bench
from holdfast.perturbations.snapshot import decoder_linears, restored
from holdfast.runtime.memory import Parts


def pruned(weight: Tensor, scores: Tensor, share: float) -> Tensor:
    """(out, in) with the ⌊share · in⌋ weights of each row that score lowest set to zero."""
    lowest = scores.argsort(dim=1, stable=True)[:, : int(share * weight.shape[1])]
    return weight.scatter(1, lowest, 0.0)


@contextmanager
def without(
    model: Any, share: float, score: Callable[[str, Tensor], Tensor], of: Literal["matrix", "row"]
) -> Iterator[None]:
    """The lowest share of each matrix, or of each of its rows, is zero inside. One matrix at a time: `argsort` takes
    eight bytes a weight."""
    weights = {name: linear.weight for name, linear in decoder_linears(model).items()}
    with restored(weights):
        with torch.no_grad():
            for name, weight in weights.items():
                _prune(weight, score(name, weight), share, weight.shape if of == "row" else (1, -1))
        yield


def _prune(weight: Tensor, scores: Tensor, share: float, shape: Sequence[int]) -> None:
    """In place, by the rows of that shape."""
    weight.copy_(pruned(weight.reshape(shape), scores.reshape(shape), share).view_as(weight))


@torch.no_grad()
def input_norms(model: Any, bench: Bench, count: int) -> dict[str, Tensor]:
    """‖x_j‖ of every linear layer's inputs over the tokens of `count` rows: name -> (in,). No logits are kept but one
    position's, and no more than `bench.batch_size` rows run at once."""
    linears = decoder_linears(model)
    total: dict[str, Tensor] = {}

    def read(rows: list[tuple[list[int], list[int]]]) -> None:
        for name, squares in _squares(model, linears, rows).items():
            total[name] = total[name] + squares if name in total else squares

    Parts("evaluate.batch_size", bench.batch_size).each(bench.training("benign")[:count], read)
    return {name: squares.sqrt() for name, squares in total.items()}


def _squares(model: Any, linears: dict[str, nn.Linear], rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Sums of the squared inputs over the tokens of some rows, name -> (in,); what fails counts nothing."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            found[name] = args[0].float().square().sum((0, 1))  # of (1, tokens, in)

        return hook

    with ExitStack() as hooks:
        for name, linear in linears.items():
            hooks.callback(linear.register_forward_pre_hook(watch(name)).remove)
        states(model, packed([(prompt + response, ()) for prompt, response in rows], model.device))
    return found
