"""Refinement by back-propagation with AdamW, at the forward budget of the zeroth-order methods."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from holdfast.methods.method import METHODS, PASS, Deploys, Method
from holdfast.settings.options import Positive

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.methods.batches import Batch
    from holdfast.methods.descent import Descent
    from holdfast.methods.task import Outcome, Task


@METHODS.register("first_order")
class FirstOrder(Method):
    """The plain gradient of the loss."""

    lr: Positive = Field(description="learning rate of AdamW")

    passes = PASS
    moved = 4  # the master, its gradient, AdamW's two moments

    def refine(self, task: Task) -> Outcome:
        from holdfast.methods.descent import Descent, descend, plain

        return descend(Descent(task, self.lr), plain, PASS)


@METHODS.register("smoothed")
class Smoothed(Deploys, FirstOrder):
    """The gradient at weights with fresh noise, or rounded: of the loss that zeroth order descends."""

    def refine(self, task: Task) -> Outcome:
        from holdfast.methods.descent import Descent

        return self.descended(Descent(task, self.lr, self.deployment(task)))

    def descended(self, descent: Descent) -> Outcome:
        """All its steps."""
        from holdfast.methods.descent import descend

        return descend(descent, lambda d, step, batch: d.deployed_gradient(batch, step, (1,)), PASS)


@METHODS.register("noise_stability")
class NoiseStability(FirstOrder):
    """The mean gradient at weights plus and minus the same noise (NSO, Zhang et al., arXiv 2306.08553): it sees the
    loss's curvature without the noise of the first-order term."""

    sigma: Positive = Field(description="of the weight noise on all decoder layers, relative to each matrix's rms")

    passes = 2 * PASS
    moved = 4

    def refine(self, task: Task) -> Outcome:
        from holdfast.methods.descent import Descent, descend

        descent = Descent(task, self.lr, task.deployment(self.sigma, None))
        return descend(descent, lambda d, step, batch: d.deployed_gradient(batch, step, (1, -1)), 2 * PASS)


@METHODS.register("sam")
class SharpnessAware(FirstOrder):
    """Sharpness-aware minimization (Foret et al., ICLR 2021): the gradient at the worst point within `rho`. In half
    precision that point is rounded, like all weights, and most of a small `rho` with it."""

    rho: Positive = Field(description="radius, in the norm of all refined weights together")

    passes = 2 * PASS
    moved = 5  # also a copy of the masters

    def refine(self, task: Task) -> Outcome:
        import torch
        from pytorch_optimizer import SAM

        from holdfast.methods.descent import Descent, run

        descent = Descent(task, self.lr)
        settings = {"lr": self.lr, "weight_decay": 0.0, "foreach": False}
        optimizer = SAM(descent.moved, torch.optim.AdamW, rho=self.rho, **settings)

        def update(step: int, batch: Batch) -> Tensor:
            optimizer.zero_grad()
            loss = descent.gradient(batch)

            def again() -> Tensor:
                optimizer.zero_grad()
                descent.masters.restore()  # which the optimizer has displaced
                return descent.gradient(batch)

            optimizer.step(again)
            descent.masters.restore()
            return loss

        return run(task, descent.weights, update, 2 * PASS)


@METHODS.register("neftune")
class NEFTune(FirstOrder):
    """Uniform noise on the embedded tokens, ±alpha / √(length · width) (NEFTune, Jain et al., ICLR 2024)."""

    alpha: Positive = Field(description="size of the noise")

    def refine(self, task: Task) -> Outcome:
        import torch

        embedding = task.model.get_input_embeddings()
        generator = torch.Generator().manual_seed(task.seed)

        def noisy(module: object, args: object, embedded: Tensor) -> Tensor:
            length, width = embedded.shape[-2:]
            noise = torch.rand(embedded.shape, generator=generator).to(embedded) * 2 - 1
            return embedded + noise * (self.alpha / math.sqrt(length * width))

        hook = embedding.register_forward_hook(noisy)
        try:
            return super().refine(task)
        finally:
            hook.remove()


@METHODS.register("weight_averaging")
class WeightAveraging(FirstOrder):
    """Plain descent whose result is the mean of the second half of its iterates (SWA, Izmailov et al., UAI 2018): the
    masters' mean, rounded once."""

    moved = 5  # also the mean

    def refine(self, task: Task) -> Outcome:
        import torch
        from torch import nn
        from torch.optim.swa_utils import AveragedModel

        from holdfast.methods.descent import Descent, descend, plain, steps_of

        descent, steps = Descent(task, self.lr), steps_of(task, PASS)
        iterate = nn.ParameterList(descent.moved)
        averaged = AveragedModel(iterate)

        def collect(step: int) -> None:
            if 2 * step >= steps:
                averaged.update_parameters(iterate)

        outcome = descend(descent, plain, PASS, after=collect)
        with torch.no_grad():
            for master, mean in zip(descent.moved, averaged.module.parameters(), strict=True):
                master.copy_(mean)
        descent.masters.restore()
        return outcome
