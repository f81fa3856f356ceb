"""The mixin under TRL's own trainers: it trains, logs, accumulates, resumes; and ranks agree bitwise."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from holdfast.datasets.tokens import TEMPLATE
from holdfast.zo.trainer import ZOArguments, ZOMixin

COMMON = {
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "report_to": [],
    "disable_tqdm": True,
    "seed": 5,
    "dataloader_pin_memory": False,
    "bf16": False,
    "save_strategy": "no",
}
ROWS = [f"What is number {i}?" for i in range(32)]


class ZOSFTTrainer(ZOMixin, SFTTrainer):
    pass


class ZODPOTrainer(ZOMixin, DPOTrainer):
    pass


ZO = ZOArguments(mu=0.1, queries=2, normalize="rms")


def sft(model, tokenizer, out, **changes):
    rows = Dataset.from_dict({"prompt": ROWS, "completion": [" It is a person."] * len(ROWS)})
    arguments = SFTConfig(output_dir=str(out), activation_checkpointing=False, **(COMMON | changes))
    return ZOSFTTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer, zo=ZO)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_sft_trains_the_layers_and_logs_under_train(llama, tokenizer, tmp_path):
    before = weights(llama)
    trainer = sft(llama, tokenizer, tmp_path, max_steps=30)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 30
    assert sum(losses[-5:]) < sum(losses[:5])
    entry = trainer.state.log_history[0]
    assert entry["grad_norm"] > 0
    assert "mean_token_accuracy" in entry
    assert not any(key.startswith("eval") for key in entry)
    one = trainer.train_dataset[0]
    assert entry["num_tokens"] < 2 * 4 * len(one["input_ids"])  # once a step, not once an evaluation
    moved = {k for k, v in llama.state_dict().items() if not torch.equal(before[k], v)}
    assert moved == {k for k in before if ".layers." in k and before[k].dim() == 2}
    assert trainer.refiner.drift() == 0
    assert not llama.model.layers[0].training


def test_dpo_trains(llama, tokenizer, tmp_path):
    tokenizer.chat_template = TEMPLATE
    llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = type(llama).from_pretrained(tmp_path / "base")
    pairs = {"prompt": ROWS, "chosen": [" I cannot."] * len(ROWS), "rejected": [" Sure."] * len(ROWS)}
    arguments = DPOConfig(output_dir=str(tmp_path), activation_checkpointing=False, **(COMMON | {"max_steps": 20}))
    zo = ZOArguments(mu=0.1, queries=2, layers=["layer.1"], normalize="rms")
    trainer = ZODPOTrainer(
        model, args=arguments, train_dataset=Dataset.from_dict(pairs), processing_class=tokenizer, zo=zo
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log[0]["loss"] == pytest.approx(0.693, abs=0.05)
    assert log[-1]["rewards/margins"] > log[0]["rewards/margins"]


def test_gradient_accumulation_is_one_perturbation_for_all(llama, tokenizer, tmp_path):
    """Two micro-batches of four equal one batch of eight: rows are of one length, so that their means are."""
    whole, parts = copy.deepcopy(llama), llama
    a = sft(whole, tokenizer, tmp_path, per_device_train_batch_size=8)
    b = sft(parts, tokenizer, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for trainer in (a, b):
        trainer.train()
    for k, v in whole.state_dict().items():
        assert torch.allclose(v, parts.state_dict()[k], atol=2e-4)
    first, second = (t.state.log_history[0]["loss"] for t in (a, b))
    assert first == pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize("sharding", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_weights_in_shards_are_refused(llama, tokenizer, tmp_path, sharding):
    trainer = sft(llama, tokenizer, tmp_path)
    setattr(trainer, sharding, True)
    with pytest.raises(ValueError, match="keeps weights in shards"):
        trainer.create_optimizer()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_resumes_to_the_same_bits(llama, tokenizer, tmp_path, dtype):
    llama.to(dtype)
    whole, base = copy.deepcopy(llama), copy.deepcopy(llama)
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    sft(whole, tokenizer, tmp_path / "whole", **settings).train()
    resumed = sft(base, tokenizer, tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in whole.state_dict().items())


RANKS = """
import sys; sys.path[:0] = {paths!r}
import torch, torch.distributed as dist
from transformers import LlamaForCausalLM
from holdfast.zo import ZeroOrderRefiner
model = LlamaForCausalLM.from_pretrained({base!r})
def losses(model, ids):
    logits = model(input_ids=ids).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
g = torch.Generator().manual_seed(1)
refiner = ZeroOrderRefiner(model, losses, layers=["layer.0", "layer.1"], mu=0.1, lr=0.05, queries=2)
for _ in range(5):
    ids = torch.randint(5, 100, (6, 12), generator=g)
    refiner.step(ids[rank::size])
torch.save(model.state_dict(), {out!r} + f"-{{size}}-{{rank}}.pt")
dist.destroy_process_group()
"""


def test_ranks_share_scalars_and_agree_bitwise(llama, tmp_path):
    llama.save_pretrained(tmp_path / "base")
    program = tmp_path / "ranks.py"
    program.write_text(RANKS.format(paths=[], base=f"{tmp_path}/base", out=f"{tmp_path}/out"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for size in (1, 2, 3):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        ended = subprocess.run([*torchrun, str(program)], env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
    models = {
        (size, rank): torch.load(f"{tmp_path}/out-{size}-{rank}.pt") for size in (1, 2, 3) for rank in range(size)
    }
    single = models.pop((1, 0))
    for (size, _), found in models.items():
        for name, value in found.items():
            assert torch.equal(value, models[size, 0][name])
            assert torch.allclose(value, single[name], atol=1e-6)
