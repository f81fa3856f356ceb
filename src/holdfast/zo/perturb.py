"""Exact perturbation: forward weights are written from float32 masters; nothing is added and subtracted in place."""

from __future__ import annotations

import ctypes
import math
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from holdfast.zo.kernels import add_noise
from holdfast.zo.layers import layer_of
from holdfast.zo.noise import NOISES, SUBSET, Stream, Target, words

SCRATCH = 2**24  # float32 numbers, 64 MiB: tensors are written together, so many at a time


class PerturbationError(ValueError):
    """Weights that noise cannot move; the message is one line."""


class Moves(Protocol):
    """What a refinement moves: tensors of a model, along directions that integers name. Three implementations:
    `Masters`, all weights of some tensors along noise; `LowRank`, their low-rank factors along noise; and `Span`, one
    coefficient a tensor along a given direction.
    """

    draws: Draws
    tensors: dict[str, nn.Parameter]

    def write(self, radius: float, *, step: int, query: int) -> None:
        """Displace the forward weights by what this query probes, times `radius`."""

    def move(self, coefficients: Sequence[float], *, step: int) -> None:
        """Move for good by Σ_i coefficient_i times what query i probes, and write the forward weights."""

    def restore(self) -> None:
        """Write the forward weights as they are without displacement, bitwise."""

    def leave(self) -> None:
        """Write the forward weights as they were before there were moves; none may have been made."""

    def drift(self) -> int:
        """How many forward weights differ from what `restore` writes."""

    def header(self) -> dict[str, Any]:
        """What a log has to say for a move to be repeated: JSON values, numbers as hexadecimal floats."""


class Draws:
    """The noise s∘z of some tensors: their frozen scales s = rms(W), and the names of z. With `subset` below 1 each
    query perturbs and moves some groups only (see `subsets`).

    A tensor's stream of noise is named by a hash of its name, so that it depends on no selection of layers, order or
    shard. `scales` gives s of those of which it is already known (a replay repeats no reduction, whose last bit
    depends on the number of threads). Raises `PerturbationError` for a tensor that relative noise cannot move as a
    whole: of scale zero, as LoRA's B is at its start, not finite, without values (meta), or a shard of another
    (DTensor).
    """

    def __init__(
        self,
        tensors: Mapping[str, nn.Parameter],
        *,
        seed: int,
        noise: str = "rademacher",
        scales: Mapping[str, float] | None = None,
        subset: float = 1.0,
    ) -> None:
        if noise not in NOISES:
            raise ValueError(f"noise={noise}: choose one of {', '.join(NOISES)}")
        if not 0 < subset <= 1:
            raise ValueError(f"subset={subset}: give a share of the groups, above 0 and at most 1")
        if not tensors:
            raise ValueError("no tensors are given; name at least one layer with weights that can be trained")
        self.names = {name: zlib.crc32(name.encode()) for name in tensors}
        if len(set(self.names.values())) < len(self.names):
            raise ValueError("two tensor names have one hash; rename one of them")
        self.seed, self.noise, self.subset = seed, noise, subset
        self.groups = {name: layer_of(name) or name for name in tensors}
        self.dtypes = {name: str(p.dtype).removeprefix("torch.") for name, p in tensors.items()}
        for name, parameter in tensors.items():
            _check(name, parameter)
        known = dict(scales or {})
        found = known | _scales({name: p for name, p in tensors.items() if name not in known})
        self.scales = {name: found[name] for name in tensors}
        for name in tensors:
            if not 0 < self.scales[name] < math.inf:
                what = "all its weights are zero" if self.scales[name] == 0 else "it holds a NaN or an infinity"
                raise PerturbationError(f"{name}: {what}; noise relative to its rms cannot move it")

    def stream(self, step: int) -> Stream:
        return Stream(self.noise, self.seed, step)

    def subsets(self, queries: Sequence[int], *, step: int) -> list[list[str]]:
        """The groups that each query perturbs: decoder layers (`layer.3`), other tensors by their own names.

        Each is in with probability `subset`, by a word of (seed, step, query, group); if none is, the one of the
        lowest word.
        """
        groups = list(dict.fromkeys(self.groups.values()))
        if self.subset == 1:
            return [groups for _ in queries]
        places = [zlib.crc32(group.encode()) for group in groups]
        found = words(SUBSET, self.stream(step), tensors=places, queries=queries)
        inside = (found < round(self.subset * 2**32)) | (found == found.amin(1, keepdim=True))
        return [[g for g, one in zip(groups, row, strict=True) if one] for row in inside.tolist()]

    def header(self) -> dict[str, Any]:
        """The part of a log's header that all moves share."""
        tensors = {k: {"dtype": self.dtypes[k], "scale": float(s).hex()} for k, s in self.scales.items()}
        return {"seed": self.seed, "noise": self.noise, "subset": float(self.subset).hex(), "tensors": tensors}


class Masters:
    """Float32 masters, 4 bytes a weight, which noise displaces and moves. Options are those of `Draws`."""

    def __init__(self, tensors: Mapping[str, nn.Parameter], **options: Any) -> None:
        self.tensors, self.draws = dict(tensors), Draws(tensors, **options)
        self.values = {
            k: p.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
            for k, p in tensors.items()
        }

    def write(self, radius: float, *, step: int, query: int) -> None:
        """Forward weights := round(master + radius · s∘z), with z = 0 in groups outside the query's subset."""
        self._add([radius], [query], step, keep=False)

    def move(self, coefficients: Sequence[float], *, step: int) -> None:
        """Masters += Σ_i coefficient_i · s∘z_i over the queries in order; forward weights := round(master)."""
        self._add(coefficients, range(len(coefficients)), step, keep=True)

    @torch.no_grad()
    def _add(self, coefficients: Sequence[float], queries: Sequence[int], step: int, keep: bool) -> None:
        draws = self.draws
        asked = list(zip(coefficients, draws.subsets(queries, step=step), strict=True))
        targets = []
        for name, parameter in self.tensors.items():
            scale, group = draws.scales[name], draws.groups[name]
            mine = [float32(c * scale) if group in inside else 0.0 for c, inside in asked]
            targets.append(Target(self.values[name], parameter, draws.names[name], mine))
        add_noise(targets, queries, draws.stream(step), keep=keep)

    def restore(self) -> None:
        """Forward weights := round(master), bitwise what they were before any `write`."""
        self._add([], [], 0, keep=False)

    def leave(self) -> None:
        self.restore()

    @torch.no_grad()
    def drift(self) -> int:
        """How many forward weights differ from round(master)."""
        return sum(wrong(self.values[name], p) for name, p in self.tensors.items())

    def header(self) -> dict[str, Any]:
        return self.draws.header() | {"kind": "weights"}


def bundles(tensors: Mapping[str, nn.Parameter]) -> Iterator[dict[str, nn.Parameter]]:
    """Tensors of one device, of SCRATCH elements together at most, or a single one that is larger."""
    for device in dict.fromkeys(p.device for p in tensors.values()):
        bundle: dict[str, nn.Parameter] = {}
        for name, parameter in tensors.items():
            if parameter.device != device:
                continue
            if bundle and sum(p.numel() for p in (*bundle.values(), parameter)) > SCRATCH:
                yield bundle
                bundle = {}
            bundle[name] = parameter
        yield bundle


def _check(name: str, parameter: Tensor) -> None:
    if parameter.is_meta:
        raise PerturbationError(f"{name}: has no values here (device meta); load the model whole, without offloading")
    # Where its module was never imported, no tensor is of that kind; the import alone takes a second.
    sharding = sys.modules.get("torch.distributed.tensor")
    if sharding and isinstance(parameter.data, sharding.DTensor):
        raise PerturbationError(f"{name}: is a shard (DTensor, as of FSDP); every rank needs the whole tensor")


@torch.no_grad()
def _scales(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """rms of each tensor, float32; the host waits once a device."""
    found: dict[str, float] = {}
    for device in dict.fromkeys(p.device for p in tensors.values()):
        names = [name for name, p in tensors.items() if p.device == device]
        rms = [tensors[name].detach().float().square().mean().sqrt() for name in names]
        found.update(zip(names, torch.stack(rms).tolist(), strict=True))
    return {name: found[name] for name in tensors}


def wrong(value: Tensor, parameter: Tensor) -> int:
    """How many elements of a parameter differ from the rounded value."""
    return int((value.to(parameter.dtype) != parameter).sum())


def float32(value: float) -> float:
    """Rounded here, once, so that no backend rounds a coefficient in its own way."""
    return ctypes.c_float(value).value


def total(losses: Tensor) -> Tensor:
    """[sum, count] of per-example losses in float64, shape (2,), on their device."""
    flat = losses.detach().reshape(-1).double()
    return torch.stack([flat.sum(), torch.full_like(flat[0], flat.numel())])
