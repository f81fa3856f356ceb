"""Prefix reuse: hidden states below the first perturbed layer are computed once for a batch and handed on.

For the length of a call, decoder layers below the first perturbed one pass their input through, and the last of
them gives the stored states instead. All else runs as it is, so that whatever a model computes beside its
layers (positions, masks, rescaled embeddings) stays its own. This is exact for every decoder whose layers depend
on the states alone; any other is found out on the first batch, whose losses are computed both ways and must
agree bitwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.layers import decoder_stack

SCOPES = ("off", "step", "run")


class PrefixReuse:
    """`scope`: `off`; `step`, where states live from one `forget` to the next; or `run`, where they are kept for
    every batch object that ever came, which must then never change."""

    def __init__(self, model: nn.Module, refined: Mapping[str, nn.Parameter], scope: str) -> None:
        if scope not in SCOPES:
            raise ValueError(f"prefix={scope}: choose one of {', '.join(SCOPES)}")
        self.below = layers_below(model, refined) if scope != "off" else []
        self.enabled, self.scope, self.checked = bool(self.below), scope, False
        # id of a batch -> (the batch itself, so that the id stays its own; the states of each model call)
        self.stored: dict[int, tuple[Any, list[Any]]] = {}

    def run(self, batch: Any, losses: Callable[[], Tensor]) -> Tensor:
        """`losses()`, with the layers below skipped if this batch has been seen."""
        if not self.enabled:
            return losses()
        if id(batch) in self.stored:
            with _handing(self.below, self.stored[id(batch)][1]):
                return losses()
        with _recording(self.below[-1:]) as (states,):
            found = losses()
        if not self.checked:
            self.checked = self.enabled = _agrees(self.below, states, losses, found)
        if self.enabled:
            self.stored[id(batch)] = (batch, states)
        return found

    def forget(self) -> None:
        """The end of a step."""
        if self.scope == "step":
            self.stored.clear()

    @property
    def bytes(self) -> int:
        """Size of the stored states."""
        kept = (s for _, states in self.stored.values() for s in states)
        return sum((s[0] if isinstance(s, tuple) else s).nbytes for s in kept)


class LayerStates:
    """What every decoder layer gave in one forward of one batch, so that later ones may begin above any of them."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.layers, self.checked = model, list(decoder_stack(model)), False
        self.states: list[list[Any]] = []  # of each layer, one a model call

    def record(self, losses: Callable[[], Tensor]) -> Tensor:
        """`losses()`, by all layers, in the place of what was stored before."""
        if not self.layers:
            return losses()
        self.states = []
        with _recording(self.layers) as states:
            found = losses()
        middle = max(1, len(self.layers) // 2)
        if not self.checked and not _agrees(self.layers[:middle], states[middle - 1], losses, found):
            self.layers = []
        self.states, self.checked = states, True
        return found

    def run(self, depth: int, losses: Callable[[], Tensor]) -> Tensor:
        """`losses()` of the batch last recorded, with that many of the lowest layers skipped."""
        if not self.layers or depth == 0:
            return losses()
        with _handing(self.layers[:depth], self.states[depth - 1]):
            return losses()


@contextmanager
def _recording(layers: list[nn.Module]) -> Iterator[list[list[Any]]]:
    """Of each layer, the output of every call."""
    states: list[list[Any]] = [[] for _ in layers]
    with ExitStack() as undo:
        for layer, kept in zip(layers, states, strict=True):
            hook = layer.register_forward_hook(lambda module, args, output, kept=kept: kept.append(output))
            undo.callback(hook.remove)
        yield states


def _agrees(below: list[nn.Module], states: list[Any], losses: Callable[[], Tensor], full: Tensor) -> bool:
    """Whether the losses with these layers skipped are bitwise the full ones; a warning where they are not."""
    try:
        with _handing(below, states):
            same = torch.equal(losses(), full)
    except Exception:  # whatever an unknown architecture raises when its layers are skipped
        same = False
    if not same:
        warnings.warn("this model's losses change when prefix states are reused; all its layers run", stacklevel=2)
    return same


@contextmanager
def _handing(below: list[nn.Module], states: list[Any]) -> Iterator[None]:
    """These layers, lowest first, are skipped, and the last of them gives the states."""
    calls = iter(states)

    def passed(hidden: Any = None, *args: Any, hidden_states: Any = None, **kwargs: Any) -> Any:
        given = hidden_states if hidden is None else hidden
        return (given,) if isinstance(states[0], tuple) else given

    with ExitStack() as undo:
        for layer in below:
            undo.callback(_put_back, layer, layer.__dict__.get("forward"))
            layer.forward = passed
        below[-1].forward = lambda *args, **kwargs: next(calls)
        yield


def _put_back(layer: nn.Module, forward: Any) -> None:
    del layer.forward
    if forward is not None:  # someone else's, accelerate's for example
        layer.forward = forward


def layers_below(model: nn.Module, tensors: Mapping[str, nn.Parameter]) -> list[nn.Module]:
    """The decoder layers below all of these tensors, lowest first; none where that cannot be told."""
    try:
        stack = list(decoder_stack(model))
    except ValueError:  # an architecture whose layers are not known
        return []
    inside = {id(p): depth for depth, layer in enumerate(stack) for p in layer.parameters()}
    head, embeddings = (_parameters(model, name) for name in ("get_output_embeddings", "get_input_embeddings"))
    above = {identity: len(stack) for identity in head - embeddings}
    return stack[: min((inside | above).get(id(p), 0) for p in tensors.values())]


def _parameters(model: nn.Module, getter: str) -> set[int]:
    module = getattr(model, getter)() if hasattr(model, getter) else None
    return set() if module is None else {id(p) for p in module.parameters()}
