"""Fine-tuning after alignment, harmless or not."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from holdfast.errors import UserError
from holdfast.perturbations.point import PERTURBATIONS, Arm, Bench, Level, Perturbation, Point
from holdfast.settings.options import Count, Positive


@PERTURBATIONS.register("finetune")
class FineTuning(Perturbation):
    """A copy of the whole model, fine-tuned by LoRA (PEFT) with AdamW for `level` steps, the adapter, in float32,
    merged. Its rows are none that alignment had. Draws take other rows in another order; all methods of a seed meet
    the same."""

    rows: Literal["benign", "attack"] = Field(
        description="benign rows with their answers; attack: harmful prompts, each answered by what complies"
    )
    examples: Count = Field(description="training rows")
    rank: Count = Field(description="of the adapter")
    batch_size: Count = Field(description="rows of a step")
    lr: Positive = Field(description="learning rate")

    attack = True
    keeps = "copy"
    level = Level("steps", whole=True)
    label = "{level:g} steps"
    random = True

    @contextmanager
    def applied(self, model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
        import torch
        from peft import LoraConfig, get_peft_model

        from holdfast.models.likelihood import Told, logprobs
        from holdfast.perturbations.snapshot import decoder_linears

        decoder_linears(model)  # says so of a model that adapters would reach in part
        rng = random.Random(f"{bench.noise_seed} {point.draw}")
        pool = bench.training("other" if self.rows == "benign" else self.rows)
        if not pool:
            raise UserError(f"perturb.{point.name}: the data set has no {self.rows} rows beside those of alignment")
        rows = rng.sample(pool, min(self.examples, len(pool)))
        with torch.random.fork_rng():  # an adapter's first weights are drawn from torch's generator
            torch.manual_seed(rng.getrandbits(63))
            config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules="all-linear")
            tuned = get_peft_model(copy.deepcopy(model), config)
        trained = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)
        for _ in range(int(point.level)):
            drawn = rng.choices(rows, k=self.batch_size)
            told = Told([(prompt, [response]) for prompt, response in drawn], model.device)
            loss = -logprobs(tuned, told).sum() / told.lengths.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield Arm(tuned.merge_and_unload().eval())
