"""Alignment by back-propagation, in TRL's trainers: of all weights, or of a low-rank adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import Field

from holdfast.methods.method import PASS
from holdfast.recipes.recipe import RECIPES, Stepwise, Trained
from holdfast.settings.options import AtLeastZero, Count, Options, Positive

if TYPE_CHECKING:
    from holdfast.runtime.run import Run


class Lora(Options):
    """Matrices B A of a low rank beside all linear layers of the decoder, times alpha / rank."""

    rank: Count = Field(description="of the matrices")
    alpha: Count = Field(description="their product counts alpha / rank times")


class Gradient(Stepwise):
    """What SFT and DPO have in common."""

    max_length: Annotated[int, Ge(16)] = Field(description="tokens of a row; longer ones are cut")
    warmup: Annotated[float, Ge(0), Le(1)] = Field(description="share of the steps in which the rate rises")
    lora: Lora | None = Field(default=None, description="null: all weights are trained")


@RECIPES.register("sft")
class SFT(Gradient):
    """Supervised fine-tuning on the responses."""

    optimizer: Literal["adamw_torch", "sgd"] = Field(description="as transformers names it")
    optimizer_args: str | None = Field(default=None, description="as transformers takes them, such as momentum=0.9")

    def align(self, run: Run, model: Any, tokenizer: Any, rows: Any, parts: tuple[range, ...]) -> Trained:
        from trl import SFTConfig, SFTTrainer

        from holdfast.recipes.trainer import train

        turns = [{"prompt": asked, "completion": _assistant(r.response)} for asked, r in _asked(rows)]
        own = {"completion_only_loss": True, "optim": self.optimizer, "optim_args": self.optimizer_args}
        losses = train(self, run, model, tokenizer, turns, parts, SFTTrainer, SFTConfig, own)
        return Trained(losses, PASS * self.steps, PASS * self.steps * self.batch_size)


@RECIPES.register("dpo")
class DPO(Gradient):
    """Direct preference optimization of the response over the rejected one, which is the opening of the other answer
    where the data give none, the base model being the reference (with LoRA: the model with its adapter off). The
    chosen answer's own NLL keeps it likely in itself."""

    beta: Positive = Field(description="of the loss: how far from the reference")
    sft_weight: AtLeastZero = Field(description="of the chosen answer's NLL beside DPO's own loss")

    def align(self, run: Run, model: Any, tokenizer: Any, rows: Any, parts: tuple[range, ...]) -> Trained:
        from trl import DPOConfig, DPOTrainer

        from holdfast.recipes.trainer import train

        openings = run.cfg.openings.loss
        other = {"harmful": openings.compliance[0], "benign": openings.refusal[0]}
        turns = [
            {
                "prompt": asked,
                "chosen": _assistant(r.response),
                "rejected": _assistant(r.rejected or other[r.label]),
            }
            for asked, r in _asked(rows)
        ]
        losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, self.sft_weight], "beta": self.beta}
        own = {**losses, "precompute_ref_log_probs": True}
        history = train(self, run, model, tokenizer, turns, parts, DPOTrainer, DPOConfig, own)
        reference = 2 * len(rows)
        sequences = 2 * PASS * self.steps * self.batch_size + reference
        return Trained(history, PASS * self.steps + math.ceil(len(rows) / self.batch_size), sequences)


def _asked(rows: Any) -> Iterator[tuple[list[dict[str, str]], Any]]:
    """The turns that a row's answer follows, and the row."""
    from holdfast.datasets.turns import conversation

    for row in rows.itertuples():
        yield conversation(row.prompt, getattr(row, "turns", "")), row


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
