"""What stages compute, and how long that takes at a machine's throughput."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from holdfast.methods.method import PASS
from holdfast.planning.memory import FLOAT, Sizes
from holdfast.planning.shape import Shape

LAYER_SECONDS = 4e-4  # Python's and the launches' part of one layer's forward


@dataclass(frozen=True)
class Machine:
    """Operations and bytes a second, as forwards and copies reach them; `words` say where the figures are from."""

    flops: float
    bandwidth: float
    words: str


@dataclass(frozen=True)
class Pass:
    """`times` times: so many operations, on so many bytes of weights that each time are read once; further bytes that
    are moved; and layers that are called."""

    flops: float
    weights: float = 0
    moved: float = 0
    layers: float = 0
    times: float = 1

    def seconds(self, machine: Machine) -> float:
        computing = max(self.flops / machine.flops, self.weights / machine.bandwidth)
        return self.times * (computing + self.moved / machine.bandwidth + LAYER_SECONDS * self.layers)


def forward(s: Shape, batch: Sizes, times: float = 1, share: float = 1, past: int = 0) -> Pass:
    """`share` of the layers run; `past` tokens of each row are in the cache."""
    attention = 4 * s.hidden * batch.size * (past + batch.tokens / 2) * len(s.layers)
    head = s.hidden * s.vocabulary
    flops = share * (2 * s.matrices * batch.size + attention) + 2 * head * batch.rows * batch.columns
    keys = 2 * s.kv * len(s.layers) * s.width * batch.rows * past
    read = s.width * (share * s.matrices + head) + keys
    logits = 3 * FLOAT * s.vocabulary * batch.rows * batch.columns
    return Pass(flops, read, logits, share * len(s.layers), times)


def backward(s: Shape, batch: Sizes, times: float = 1) -> list[Pass]:
    """A forward and the backward after it."""
    one = forward(s, batch, times)
    return [one, replace(one, times=(PASS - 1) * times)]


def copying(moved: float, times: float = 1) -> Pass:
    """Bytes read and written, and next to nothing computed."""
    return Pass(0, 0, moved, 0, times)


def seconds(passes: Iterable[Pass], machine: Machine) -> float:
    return sum(one.seconds(machine) for one in passes)


def measured(dtype: str) -> Machine:
    """This machine's, by forwards of two decoder layers and by copies, in seconds on a CPU."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    width = 4096 if device == "cuda" else 1024
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": 16, "vocab_size": 64}
    with torch.random.fork_rng(), torch.device(device):
        model = LlamaModel(LlamaConfig(num_hidden_layers=2, **sizes)).to(getattr(torch, dtype)).eval()
        ids = torch.randint(64, (8, 64))
        buffer = torch.ones(2**26)
    flops = 2 * ids.numel() * sum(p.numel() for p in model.layers.parameters())
    with torch.inference_mode():
        forwards = _fastest(lambda: model(input_ids=ids, use_cache=False), device)
        copies = _fastest(lambda: buffer.add_(1), device)
    where = torch.cuda.get_device_name() if device == "cuda" else f"this CPU, {torch.get_num_threads()} threads"
    return Machine(flops / forwards, 2 * buffer.nbytes / copies, f"measured on {where}, {dtype}")


def _fastest(run: object, device: str, budget: float = 5) -> float:
    """Seconds of a run: the median of what fits in the budget."""
    import statistics

    import torch

    assert callable(run)
    found: list[float] = []
    while len(found) < 3 or (sum(found) < budget and len(found) < 50):
        begun = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)
