"""What a refinement moves: which tensors of a model, and along which coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from holdfast.zo.directions import Direction, Span
from holdfast.zo.layers import weight_groups
from holdfast.zo.low_rank import LowRank
from holdfast.zo.perturb import Masters, Moves


def chosen_tensors(
    model: nn.Module,
    layers: Sequence[str] | None,
    tensors: Mapping[str, nn.Parameter] | None,
    directions: Mapping[str, Direction] | None,
) -> dict[str, nn.Parameter]:
    """The matrices of `layers`, or `tensors`, or what `directions` are of. Raises `ValueError` unless one of them is
    given, and for a layer or a direction that the model has not."""
    if sum(given is not None for given in (layers, tensors, directions)) != 1:
        raise ValueError("give one of layers, tensors and directions")
    if tensors is not None:
        return dict(tensors)
    if layers is not None:
        groups = weight_groups(model)
        if unknown := set(layers) - set(groups):
            raise ValueError(f"layers={sorted(unknown)}: choose among {', '.join(groups)}")
        return {k: p for layer in layers for k, p in groups[layer].items()}
    named = dict(model.named_parameters())
    for name, direction in (directions or {}).items():
        if name not in named or named[name].shape != direction.shape:
            raise ValueError(f"directions: the model has no tensor {name} of shape {tuple(direction.shape)}")
    return {k: named[k] for k in directions or {}}


def moves_of(
    tensors: Mapping[str, nn.Parameter],
    directions: Mapping[str, Direction] | None,
    *,
    rank: int | None,
    tie: str,
    start: float,
    **drawn: Any,
) -> Moves:
    """Coefficients along `directions`; or adapters of `rank`; or all weights. `drawn` are the options of `Draws`."""
    if directions is None:
        return LowRank(tensors, rank=rank, **drawn) if rank else Masters(tensors, **drawn)
    if rank:
        raise ValueError("directions have no rank to give; `singular_directions` takes one")
    return Span(tensors, directions, tie=tie, start=start, **drawn)
