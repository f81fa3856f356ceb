"""Two-point zeroth-order refinement (design: descend L_μ(θ) = E L(θ + μ s∘z) by forward passes alone)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.layers import weight_groups
from holdfast.zo.perturb import Masters


@dataclass(frozen=True)
class StepReport:
    """What one step saw: the mean of L± and the projected gradient of every query."""

    loss: float
    projected_gradients: list[float]


class ZeroOrderRefiner:
    """g_i = (L(θ+μ s∘z_i) − L(θ−μ s∘z_i)) / 2μ for `queries` draws, then θ ← θ − lr · mean_i g_i s∘z_i.

    `loss_fn(model, batch)` gives per-example losses of shape (n,). `layers` names groups of
    `weight_groups(model)`. `normalize="rms"` divides by the rms of the g_i of the step, which makes the
    length of a step independent of the loss's scale. The model is in eval mode and gradient-free.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Tensor],
        *,
        layers: list[str],
        mu: float,
        lr: float,
        queries: int = 1,
        normalize: str = "none",
        seed: int = 0,
    ) -> None:
        groups = weight_groups(model)
        self.model, self.loss_fn = model, loss_fn
        self.masters = Masters({k: p for layer in layers for k, p in groups[layer].items()}, seed)
        self.mu, self.lr, self.queries, self.normalize = mu, lr, queries, normalize
        self.steps = 0
        model.eval()

    @torch.inference_mode()
    def step(self, batch: Any) -> StepReport:
        """One update on one batch. Raises `FloatingPointError` on a loss that is not finite."""
        gradients, losses = [], []
        for query in range(self.queries):
            up, down = (self._loss(batch, sign * self.mu, query) for sign in (+1, -1))
            gradients.append((up - down) / (2 * self.mu))
            losses.append((up + down) / 2)
        rms = math.sqrt(sum(g * g for g in gradients) / self.queries) if self.normalize == "rms" else 1.0
        for query, gradient in enumerate(gradients):
            if rms > 0:
                self.masters.move(-self.lr * gradient / (rms * self.queries), self.steps, query)
        self.masters.restore()
        self.steps += 1
        return StepReport(sum(losses) / self.queries, gradients)

    def _loss(self, batch: Any, radius: float, query: int) -> float:
        self.masters.write(radius, self.steps, query)
        loss = self.loss_fn(self.model, batch).float().mean().item()
        if not math.isfinite(loss):
            self.masters.restore()
            raise FloatingPointError(f"the loss is {loss} at step {self.steps}, query {query}; lower mu or lr")
        return loss
