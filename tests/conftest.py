"""Shared fixtures: a tiny random model, and a command line to the stages."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from holdfast.runtime import warm

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # files of tests run side by side
REPOSITORY = Path(__file__).resolve().parents[1]
SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False, "head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "sliding_window_pattern": 2},
    "mistral": {"tie_word_embeddings": False, "sliding_window": 8},
    "phi3": {"tie_word_embeddings": False, "sliding_window": 8},
}


def pytest_configure(config) -> None:
    """One server of forks for all stages of all tests, workers' too: libraries are imported once."""
    if not hasattr(config, "workerinput"):
        warm.start()


def run_stage(stage: str, *overrides: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    module = "holdfast.runtime.warm" if stage in warm.LIBRARIES else "holdfast"
    command = [sys.executable, "-m", module, stage, *overrides]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def stage_here(stage: str, *overrides: str) -> Path:
    """The run folder of a stage that ran in this process, where libraries are imported once."""
    from holdfast.runtime.origin import Origin
    from holdfast.runtime.run import Names, Run
    from holdfast.runtime.tracking import Tracker
    from holdfast.settings.compose import composed
    from holdfast.settings.paths import Layout

    cfg = composed([*overrides, "tracking=disabled"])
    layout, names = Layout.of(cfg), Names(cfg.model.name, cfg.align.name, cfg.method.name)
    out = {
        "answer": layout.answer(names.model),
        "align": layout.align(*names[:2], cfg.seed),
        "elicit": layout.elicit(*names[:2], cfg.seed),
        "probe": layout.probe(*names[:2], cfg.seed),
        "refine": layout.refine(*names, cfg.seed),
        "evaluate": layout.evaluate(*names, cfg.seed),
        "judge": layout.judged(*names, cfg.seed),
        "tables": layout.tables,
    }[stage]
    out.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"holdfast.stages.{stage}")
    granted, tracker = cfg.only(module.STAGE.reads), Tracker(cfg, stage, stage, {}, out, {})
    module.run(Run(stage, "", granted, cfg.seed, names, layout, out, tracker, Origin.of(cfg, [*overrides])))
    return out


@pytest.fixture(autouse=True)
def card(request) -> None:
    """What is marked `gpu` is skipped without one."""
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


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


def random_model(tokenizer, kind: str, **changes):
    """Of any architecture, two layers; attention windows are shorter than the prompts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("pad", "bos", "eos")}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **{**SIZE, **ids, **ARCHITECTURES[kind], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def save_prompts(layout, most: int) -> None:
    """What the data stage leaves, of the embedded world, with at most so many rows a split and label."""
    import pandas as pd

    from holdfast.settings.compose import composed

    cfg = composed([])
    rows = pd.DataFrame(cfg.data.build(cfg.openings)[0])
    layout.data.mkdir(parents=True)
    rows.groupby(["split", "label"]).head(most).to_parquet(layout.data / "prompts.parquet")
    (layout.data / "metrics.json").write_text("{}")


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


@cache
def last_point(name):
    """Of a YAML."""
    from holdfast.perturbations import grid
    from holdfast.settings.compose import composed

    return grid(composed([f"perturb=[{name}]"]).perturb)[-1]


def point(name, level=None, draw=0, **options):
    """The last point of the YAML of that name, or that point at another level, draw or with other options."""
    last = last_point(name)
    mine = last.perturbation.model_copy(update=options)
    return dataclasses.replace(last, level=last.level if level is None else level, draw=draw, perturbation=mine)


METHOD = {
    "mu": 0.2,
    "lr": 0.02,
    "queries": 2,
    "noise": "rademacher",
    "normalize": "rms",
    "sigma": 0.2,
    "rounding": None,
}
METHOD |= {"strengths": [0.5, 1.0], "set_aside": 0.3, "draws": 1, "benign_rise": 1.0}
METHOD |= {"tie": "layer", "rho": 0.05, "alpha": 0.5, "over_refusal": 0.25, "of": "walked"}


def method(kind: str, **options):
    """A method of that kind with options that do something on a random model."""
    from holdfast.methods import METHODS

    made = METHODS[kind]
    fields = {**METHOD, **({"lr": 1e-3} if made.passes else {}), **options}
    if "rank" in made.model_fields and made.model_fields["rank"].is_required():
        fields.setdefault("rank", 2)
    return made(name=kind, kind=kind, **{key: value for key, value in fields.items() if key in made.model_fields})
