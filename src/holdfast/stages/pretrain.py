"""Train the small base model of the study, which complies with everything."""

from __future__ import annotations

import random

from pydantic import Field

from holdfast.errors import UserError
from holdfast.models import load as models
from holdfast.runtime.run import Run, Stage
from holdfast.settings.options import Count, Options, Positive, section
from holdfast.stages.data import STAGE as DATA


@section("pretrain")
class Pretrain(Options):
    """How the base model is trained."""

    steps: Count = Field(description="of AdamW")
    batch_size: Count = Field(description="rows of a step")
    lr: Positive = Field(description="the highest learning rate of one cycle")
    threads: Count = Field(description="sums depend on it, so it is a setting and not the machine's")
    prompt_loss: bool = Field(description="whether the loss also covers the prompt tokens")


def run(run: Run) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from holdfast.datasets.tokens import fitting, prompts_ids, response_ids
    from holdfast.models.likelihood import Told, logprobs

    settings, shape = run.cfg.pretrain, run.cfg.model.shape
    torch.set_num_threads(settings.threads)
    torch.manual_seed(run.seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run.layout.data / "tokenizer")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=shape.max_positions,
            initializer_range=shape.initializer_range,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",  # the fastest on CPU at this size
        )
    )
    rows = models.prompts_of(run.layout, "pretrain")
    pairs = [
        (prompt, response_ids(tokenizer, response, end=True))
        for prompt, response in zip(prompts_ids(tokenizer, rows), rows["response"], strict=True)
    ]
    pairs = fitting(pairs, (1 + len(prompt) for prompt, _ in pairs), shape.max_positions)
    if settings.prompt_loss:
        pairs = [(prompt[:1], prompt[1:] + response) for prompt, response in pairs]
    pairs = [(prompt, response[: shape.max_positions - len(prompt)]) for prompt, response in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps, pct_start=0.1)
    rng, losses = random.Random(run.seed), []
    for step in run.progress(range(settings.steps)):
        drawn = rng.choices(pairs, k=settings.batch_size)
        told = Told([(prompt, [response]) for prompt, response in drawn], model.device)
        optimizer.zero_grad()
        loss = -logprobs(model, told).sum() / told.lengths.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if losses[-1] != losses[-1]:
            raise UserError(f"pretrain: the loss is NaN at step {step}; lower pretrain.lr={settings.lr}")
        run.tracker.log({"loss": losses[-1], "lr": float(schedule.get_last_lr()[0])})
    models.save(model, tokenizer, run.out)
    parameters = sum(p.numel() for p in model.parameters())
    run.finish({"loss": losses[-1], "parameters": parameters, "steps": settings.steps}, f"loss {losses[-1]:.3f}")


STAGE = Stage("pretrain", run, ("model", "pretrain", "seed"), ("model",), models.data_inputs, DATA)
main = STAGE.main
