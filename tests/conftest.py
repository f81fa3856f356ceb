"""Shared fixtures: a tiny random model, and a command line to the stages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("WANDB_MODE", "offline")
REPOSITORY = Path(__file__).resolve().parents[1]


def run_stage(stage: str, *overrides: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"holdfast.{stage}", *overrides]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture
def stage() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_stage


@pytest.fixture(scope="session")
def texts() -> list[str]:
    from holdfast.datasets import world

    return [f"{prompt} {response}" for prompt, response in world.facts()] + ["I cannot help with that. Sure."]


@pytest.fixture(scope="session")
def tokenizer(texts):
    from holdfast.datasets.tokens import train_tokenizer

    return train_tokenizer(texts, 500)


def random_llama(tokenizer, *, tied: bool = False, layers: int = 2):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=layers,
                num_attention_heads=4,
                max_position_embeddings=64,
                initializer_range=0.1,
                tie_word_embeddings=tied,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ).eval()


def save_aligned(folder: Path, tokenizer) -> None:
    """What an alignment leaves, of a random model."""
    random_llama(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "metrics.json").write_text("{}")


@pytest.fixture
def llama(tokenizer):
    return random_llama(tokenizer)


@pytest.fixture
def token_losses():
    def losses(model, ids):
        import torch

        logits = model(input_ids=ids).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)

    return losses


@pytest.fixture
def token_batches():
    def batches(count):
        import torch

        g = torch.Generator().manual_seed(1)
        return [torch.randint(5, 100, (3, 12), generator=g) for _ in range(count)]

    return batches


def point(name, level=None, draw=0, **options):
    """The last point of the YAML of that name, or that point at another level, draw or with other options."""
    from holdfast.compose import composed
    from holdfast.perturbations import Point, grid

    last = grid(composed([f"perturb=[{name}]"]).perturb)[-1]
    mine = {**last.options, **options}
    if name == "torchao_int8":
        pytest.importorskip("torchao")
    return Point(name, last.family, last.kind, last.level if level is None else level, draw, mine)
