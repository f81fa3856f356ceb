"""Exact perturbation: forward weights are written from float32 masters, never added to and subtracted from."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.kernels import add_noise
from holdfast.zo.layers import layer_of
from holdfast.zo.noise import NOISES, SUBSET, Stream, Target, words


class Masters:
    """Float32 masters of some tensors, their frozen scales s = rms(W), and the noise s∘z that moves them.

    A tensor's stream of noise is named by a hash of its name, so that it depends on no selection of layers,
    order or shard. `scales` gives s where it is already known (a replay repeats no reduction). With `subset`
    below 1 each query perturbs and moves some groups only (see `subsets`).
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
        self.tensors = dict(tensors)
        self.names = {name: zlib.crc32(name.encode()) for name in self.tensors}
        if len(set(self.names.values())) < len(self.names):
            raise ValueError("two tensor names have one hash; rename one of them")
        self.seed, self.noise, self.subset = seed, noise, subset
        self.groups = {name: layer_of(name) or name for name in self.tensors}
        with torch.no_grad():
            self.values = {
                k: p.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
                for k, p in tensors.items()
            }
            self.scales = dict(scales or {k: v.square().mean().sqrt().item() for k, v in self.values.items()})

    def subsets(self, queries: Sequence[int], *, step: int) -> list[list[str]]:
        """The groups that each query perturbs: decoder layers (`layer.3`), other tensors by their own names.

        Each is in with probability `subset`, by a word of (seed, step, query, group); if none is, the one of the
        lowest word.
        """
        groups = list(dict.fromkeys(self.groups.values()))
        if self.subset == 1:
            return [groups for _ in queries]
        places = [zlib.crc32(group.encode()) for group in groups]
        found = words(SUBSET, Stream(self.noise, self.seed, step), tensors=places, queries=queries)
        inside = (found < round(self.subset * 2**32)) | (found == found.amin(1, keepdim=True))
        return [[g for g, one in zip(groups, row, strict=True) if one] for row in inside.tolist()]

    def write(self, radius: float, *, step: int, query: int) -> None:
        """Forward weights := round(master + radius · s∘z), with z = 0 in groups outside the query's subset."""
        self._add([radius], [query], step, keep=False)

    def move(self, coefficients: Sequence[float], *, step: int) -> None:
        """Masters += Σ_i coefficient_i · s∘z_i over the queries in order; forward weights := round(master)."""
        self._add(coefficients, range(len(coefficients)), step, keep=True)

    @torch.no_grad()
    def _add(self, coefficients: Sequence[float], queries: Sequence[int], step: int, keep: bool) -> None:
        asked = list(zip(coefficients, self.subsets(queries, step=step), strict=True))
        targets = []
        for name, parameter in self.tensors.items():
            scale, group = self.scales[name], self.groups[name]
            mine = [float32(c * scale) if group in inside else 0.0 for c, inside in asked]
            targets.append(Target(self.values[name], parameter, self.names[name], mine))
        add_noise(targets, queries, Stream(self.noise, self.seed, step), keep=keep)

    @torch.no_grad()
    def restore(self) -> None:
        """Forward weights := round(master), bitwise what they were before any `write`."""
        for name, parameter in self.tensors.items():
            parameter.copy_(self.values[name])

    @torch.no_grad()
    def drift(self) -> int:
        """How many forward weights differ from round(master)."""
        pairs = ((self.values[k].to(p.dtype), p) for k, p in self.tensors.items())
        return sum(int((value != parameter).sum()) for value, parameter in pairs)

    def header(self) -> dict[str, Any]:
        """What a log has to say for `move` to be repeated: JSON values, numbers as hexadecimal floats."""
        return {
            "kind": "weights",
            "seed": self.seed,
            "noise": self.noise,
            "subset": float(self.subset).hex(),
            "tensors": {
                k: {"dtype": str(p.dtype).removeprefix("torch."), "scale": float(self.scales[k]).hex()}
                for k, p in self.tensors.items()
            },
        }


def float32(value: float) -> float:
    """Rounded here, once, so that no backend rounds a coefficient in its own way."""
    return ctypes.c_float(value).value


def total(losses: Tensor) -> Tensor:
    """[sum, count] of per-example losses in float64, shape (2,), on their device."""
    flat = losses.detach().reshape(-1).double()
    return torch.stack([flat.sum(), torch.full_like(flat[0], flat.numel())])
