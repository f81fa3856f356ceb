"""Refinement by back-propagation with AdamW, at the forward budget of the zeroth-order methods."""

from __future__ import annotations

import math

import torch

from holdfast.errors import UserError
from holdfast.methods.task import Outcome, Task
from holdfast.zo import weight_groups

STEP_COST = 3  # forward-equivalents: one forward, and a backward that counts as two


def first_order(task: Task) -> Outcome:
    s = task.settings
    groups = weight_groups(task.model)
    for parameter in task.model.parameters():
        parameter.requires_grad_(False)
    chosen = [p.requires_grad_(True) for layer in task.layers for p in groups[layer].values()]
    optimizer = torch.optim.AdamW(chosen, lr=s.first_order_lr, weight_decay=0.0)
    steps = max(1, 2 * s.queries * s.steps // STEP_COST)
    losses = []
    for step in task.progress(range(steps)):
        loss = task.loss(task.model, next(task.batches)).mean()
        if not math.isfinite(loss.item()):
            raise UserError(f"the loss is {loss.item()} at step {step}; lower refine.first_order_lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        task.log({"loss": losses[-1]})
    return Outcome(losses, forwards=STEP_COST * steps)
