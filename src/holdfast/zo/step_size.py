"""How far a zeroth-order step goes: schedules, normalization by what was seen before, and what curvature allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DECAY = 0.9  # of a step's weight in the running mean, for every step that came after it
SURE = 1.96  # standard errors


@dataclass(frozen=True)
class Cosine:
    """A rate that falls from `lr` at step 0 to 0 at `steps`, along half a cosine."""

    lr: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.lr * (1 + math.cos(math.pi * min(step / self.steps, 1))) / 2


def rms(values: Sequence[float]) -> float:
    """The root of the mean square."""
    return math.sqrt(sum(value * value for value in values) / len(values))


def running_rms(values: Sequence[float]) -> float:
    """The root of the mean square, later values weighing more."""
    weights = [DECAY**age for age in range(len(values))]
    total = sum(weight * value * value for weight, value in zip(weights, reversed(values), strict=True))
    return math.sqrt(total / sum(weights))


@dataclass(frozen=True)
class Curvature:
    """What queries at one point tell of the loss along random directions z of radius `mu`: their projected gradients
    g_i, and of each L₊ + L₋ − 2L₀ over μ², whose mean is tr H, the sum of the curvatures along all coordinates."""

    projected_gradients: Sequence[float]
    curvatures: Sequence[float]
    mu: float

    @property
    def slope(self) -> float:
        """The rms of the g_i: of many coordinates about the length of the gradient."""
        return rms(self.projected_gradients)

    @property
    def trace(self) -> float:
        return sum(self.curvatures) / len(self.curvatures)

    @property
    def convex(self) -> bool:
        """Whether tr H is above 0 by more than chance."""
        n = len(self.curvatures)
        spread = math.sqrt(sum((c - self.trace) ** 2 for c in self.curvatures) / max(1, n - 1) / n)
        return n > 1 and self.trace > SURE * spread

    def rate(self, queries: int) -> float:
        """The learning rate of steps that are divided by the rms of the g_i. Such a step changes a quadratic loss by
        −lr·|∇L| + lr²·tr H / 2q on average, for many coordinates, which is least at lr = q·|∇L| / tr H. But it moves
        each coordinate by about lr/√q, and further than μ nothing was seen: μ·√q at most."""
        furthest = self.mu * math.sqrt(queries)
        return min(furthest, queries * self.slope / self.trace) if self.convex else furthest

    def gain(self, queries: int) -> float:
        """How much such a step is expected to lower the loss."""
        rate = self.rate(queries)
        return rate * self.slope - rate**2 * max(self.trace, 0.0) / (2 * queries)
