"""Zeroth-order steps inside transformers' Trainer and TRL's: `class ZOSFTTrainer(ZOMixin, SFTTrainer)`.

The mixin goes first in the bases. Logging, checkpoints, callbacks, schedules, gradient accumulation and data
parallelism are the trainer's own; only the step differs, and it takes the memory of inference.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.layers import decoder_layers, weight_groups
from holdfast.zo.perturb import Masters
from holdfast.zo.refiner import ZeroOrderRefiner


@dataclass(frozen=True)
class ZOArguments:
    """What is not among the trainer's own arguments; the learning rate and the seed are."""

    mu: float
    queries: int = 1
    layers: list[str] | None = None  # groups of `weight_groups(model)`; None: all decoder layers
    noise: str = "rademacher"
    normalize: str = "none"


class ZOMixin:
    """Overrides `training_step`; the trainer's `compute_loss` is evaluated 2 · queries times under no gradient.

    Micro-batches of gradient accumulation are kept until the last one, and meet the same perturbations. Under
    `torchrun` all ranks make the same update. Raises `ValueError` for parameters in shards (FSDP, DeepSpeed ZeRO).
    """

    def __init__(self, *args: Any, zo: ZOArguments, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zo = zo
        self.pending: list[Any] = []
        self.refiner: ZeroOrderRefiner | None = None
        self.projected_gradient = 0.0
        self.noted = False  # whether this step's metrics have been taken

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        for sharding, name in (("is_fsdp_enabled", "FSDP"), ("is_deepspeed_enabled", "DeepSpeed ZeRO")):
            if getattr(self, sharding):
                raise ValueError(f"{name}: keeps weights in shards, and noise needs whole ones; start torchrun alone")
        bare = self.accelerator.unwrap_model(self.model if model is None else model)  # type: ignore[attr-defined]
        groups, zo = weight_groups(bare), self.zo
        self.refiner = ZeroOrderRefiner(
            bare,
            self._evaluated,
            layers=decoder_layers(groups) if zo.layers is None else zo.layers,
            mu=zo.mu,
            lr=self.args.learning_rate,  # type: ignore[attr-defined]
            queries=zo.queries,
            noise=zo.noise,
            normalize=zo.normalize,
            seed=self.args.seed,  # type: ignore[attr-defined]
        )
        self.optimizer: torch.optim.Optimizer = MasterWeights(self.refiner)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The mean loss of the step's evaluations; 0 for a micro-batch that waits for the last of its step."""
        self.pending.append(self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        device = self.args.device  # type: ignore[attr-defined]
        if not self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            return torch.zeros((), device=device)
        assert self.refiner is not None
        batches, self.pending = self.pending, []
        # No dropout anywhere; the flag of the model itself stays up, for TRL files its metrics by it.
        self.refiner.model.eval()
        self.refiner.model.training = True
        self.refiner.lr = self.optimizer.param_groups[0]["lr"]
        self.noted = False
        report = self.refiner.step(*batches)
        self.projected_gradient = report.rms
        return torch.tensor(report.loss, device=device)

    def _evaluated(self, model: nn.Module, inputs: Any) -> Tensor:
        """The trainer's loss. What it notes in its metrics counts once a step, not once an evaluation."""
        names = [name for name in NOTES if self.noted and hasattr(self, name)]
        kept = {name: copy.deepcopy(getattr(self, name)) for name in names}
        loss = self.compute_loss(model, dict(inputs))  # type: ignore[attr-defined]
        for name, value in kept.items():
            setattr(self, name, value)
        self.noted = True
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """Logged as `grad_norm`: the rms of the step's projected gradients."""
        return self.projected_gradient


NOTES = ("_metrics", "_total_train_tokens")  # of TRL's trainers


class MasterWeights(torch.optim.Optimizer):
    """What the trainer takes for its optimizer: the learning rate, and in checkpoints the float32 masters."""

    def __init__(self, refiner: ZeroOrderRefiner) -> None:
        super().__init__(list(refiner.masters.tensors.values()), {"lr": refiner.lr})
        self.refiner = refiner

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing: `training_step` has moved the weights."""

    def state_dict(self) -> dict[str, Any]:
        masters = self._masters()
        own = {"values": masters.values, "scales": masters.draws.scales, "steps": self.refiner.steps}
        return super().state_dict() | {"masters": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = state_dict["masters"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "masters"})
        masters = self._masters()
        for name, value in own["values"].items():
            masters.values[name].copy_(value)
        masters.draws.scales.update(own["scales"])
        self.refiner.steps = own["steps"]
        masters.restore()

    def _masters(self) -> Masters:
        assert isinstance(self.refiner.masters, Masters)  # as the mixin names layers
        return self.refiner.masters
