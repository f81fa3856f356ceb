"""What happens to a model after alignment. Each kind is one context manager that restores the weights from a
snapshot, bitwise; the draw of a noise depends on its seed alone, so that all methods meet the same noise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from holdfast.perturbations.activation_noise import activation_noise
from holdfast.perturbations.quantization import bitsandbytes_quantized, round_to_nearest
from holdfast.perturbations.weight_noise import weight_noise


@dataclass(frozen=True)
class Point:
    """One point of the evaluation grid; `name` is the YAML's, `level` its noise scale or number of bits."""

    name: str
    family: str
    kind: str
    level: float
    draw: int
    group_size: int
    generate: bool = True  # responses too, or margins and utility alone


def grid(perturb: Any) -> list[Point]:
    """Every (perturbation, level, draw) of the configuration, in its order."""
    return [
        Point(
            name,
            p.family,
            p.kind,
            float(level),
            draw,
            p.group_size,
            generate=p.generate is None or level in p.generate,
        )
        for name, p in perturb.items()
        for level in p.levels
        for draw in range(p.draws)
    ]


def perturbed(model: Any, point: Point, seed: int) -> AbstractContextManager[Any]:
    """A context in which the perturbed model may be used; it yields that model."""
    noise_seed = seed * 1000 + point.draw
    if point.kind == "weight_noise":
        return weight_noise(model, point.level, noise_seed)
    if point.kind == "activation_noise":
        return activation_noise(model, point.level, noise_seed)
    if point.kind == "rtn":
        return round_to_nearest(model, int(point.level), point.group_size)
    return bitsandbytes_quantized(model, point.name)


__all__ = ["Point", "grid", "perturbed"]
