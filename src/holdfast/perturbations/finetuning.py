"""Fine-tuning after alignment, harmless or not; `level` is the number of steps."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from holdfast.models.likelihood import sequences, token_logprobs
from holdfast.perturbations.point import Arm, Bench, Point
from holdfast.perturbations.snapshot import decoder_linears


@contextmanager
def finetuned(model: Any, point: Point, bench: Bench) -> Iterator[Arm]:
    """A copy of the whole model, fine-tuned by LoRA (PEFT) with AdamW on `examples` training rows, the adapter, in
    float32, merged.

    `rows`: `benign` rows with their answers, or an `attack`: harmful prompts, each answered by a compliant opening.
    Draws take other rows in another order; all methods of a seed meet the same.
    """
    from peft import LoraConfig, get_peft_model

    decoder_linears(model)  # says so of a model that adapters would reach in part
    options = point.options
    rng = random.Random(f"{bench.noise_seed} {point.draw}")
    pool = bench.training(options["rows"])
    rows = rng.sample(pool, min(options["examples"], len(pool)))
    with torch.random.fork_rng():  # an adapter's first weights are drawn from torch's generator
        torch.manual_seed(rng.getrandbits(63))
        config = LoraConfig(r=options["rank"], lora_alpha=2 * options["rank"], target_modules="all-linear")
        tuned = get_peft_model(copy.deepcopy(model), config)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options["lr"], weight_decay=0.0)
    for _ in range(int(point.level)):
        batch = sequences(rng.choices(rows, k=options["batch_size"]), bench.pad, model.device)
        loss = -token_logprobs(tuned, batch).sum() / batch.response[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    yield Arm(tuned.merge_and_unload().eval())
