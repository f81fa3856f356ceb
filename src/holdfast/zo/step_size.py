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
    """What some queries of radius `mu` tell of the loss at one point, on several batches and under as many draws of a
    deployment: of each batch the projected gradients g_i, in the order of the queries; and of each query and batch
    L₊ + L₋ − 2L₀ over μ², whose mean is tr H, the sum of the curvatures along all coordinates."""

    projected_gradients: Sequence[Sequence[float]]
    curvatures: Sequence[float]
    mu: float

    @property
    def slope(self) -> float:
        """The rms of the g_i: of many coordinates about the length of the gradient of one batch."""
        return rms([g for batch in self.projected_gradients for g in batch])

    @property
    def trace(self) -> float:
        return sum(self.curvatures) / len(self.curvatures)

    @property
    def convex(self) -> bool:
        """Whether tr H is above 0 by more than chance."""
        return self.trace > SURE * _error(self.curvatures)

    @property
    def shared(self) -> float:
        """|∇L| of the loss that the batches share: the root of the mean product of two batches' g_i, to which what is
        only one batch's own adds nothing on average. 0 where that mean is not above its own standard error."""
        products = []
        for mine in zip(*self.projected_gradients, strict=True):
            pairs = len(mine) * (len(mine) - 1)
            products.append((sum(mine) ** 2 - sum(g * g for g in mine)) / pairs)
        mean = sum(products) / len(products)
        return math.sqrt(mean) if mean > _error(products) else 0.0

    def rate(self, queries: int) -> float:
        """The learning rate of steps that are divided by the rms of the g_i. Such a step changes a quadratic loss by
        −lr·|∇L|²/rms(g) + lr²·tr H / 2q on average, for many coordinates, and is best where that is least. But it
        moves each coordinate by about lr/√q, and further than μ nothing was seen: μ·√q at most."""
        furthest = self.mu * math.sqrt(queries)
        return min(furthest, queries * self._fall / self.trace) if self.convex else furthest

    def gain(self, queries: int) -> float:
        """How much such a step is expected to lower the loss."""
        rate = self.rate(queries)
        return rate * self._fall - rate**2 * max(self.trace, 0.0) / (2 * queries)

    @property
    def _fall(self) -> float:
        return self.shared**2 / self.slope if self.shared else 0.0


def _error(values: Sequence[float]) -> float:
    """The standard error of their mean; infinite of a single one."""
    n, mean = len(values), sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n) if n > 1 else math.inf
