"""What one zeroth-order step costs, against plain seed replay and against two bare forwards.

python benchmarks/zo_step.py --shape llama-135m --tokens 128 512

All variants are measured in one process on one random model and one batch, half of whose tokens are response tokens:
one after another, each in turn with the floor, which so has the same state of the machine, and alone in memory. Every
variant is one step with one query:

(a) reference    seed replay with the arithmetic of the MeZO reference: the global generator reseeded, z drawn by
                 `torch.normal` per tensor and pass, `p = p + s·z·ε` out of place, four passes over all tensors
(b) ours         features switched on in turn
(c) floor        two bare forwards with full logits

With --margin prompts instead, the loss is the margin of two openings, whose floor is two bare forwards over a row an
opening.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo import ZeroOrderRefiner, sensitivity, weight_groups
from holdfast.zo.layers import decoder_layers

Step = Callable[[], Any]
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary, tied
    "tiny": (128, 256, 6, 4, 4, 1024, False),
    "llama-135m": (576, 1536, 30, 9, 3, 49152, True),
    "qwen-0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "llama-1b": (2048, 8192, 16, 32, 8, 128256, True),
    "llama-8b": (4096, 14336, 32, 32, 8, 128256, False),
}
REFERENCE_PASSES = 37  # weight-sized reads and writes of (a): 8 a perturbation of three, 13 an update


def build(shape: str, dtype: torch.dtype, device: str) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv, vocabulary, tied = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def batch_of(tokens: int, vocabulary: int, device: str) -> Tensor:
    """Token ids in rows of 64, or of 512 where there are thousands."""
    width = min(tokens, 64 if tokens <= 1024 else 512)
    return torch.randint(5, vocabulary, (tokens // width, width), generator=torch.Generator().manual_seed(1)).to(
        device
    )


def nll(model: nn.Module, ids: Tensor, response_only: bool) -> Tensor:
    """Of the second half of each row, (rows,); `response_only` computes no logits elsewhere."""
    half = ids.shape[1] // 2
    width = ids.shape[1]
    predicting = torch.arange(width - half - 1, width - 1, device=ids.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=predicting if response_only else 0).logits
    logits = (logits if response_only else logits[:, predicting]).float()
    chosen = logits.gather(-1, ids[:, -half:, None])[..., 0]
    normalizer = torch.stack([row.logsumexp(-1) for row in logits])  # row by row it stays in the cache
    return (normalizer - chosen).mean(1)


def reference(model: nn.Module, ids: Tensor, eps: float = 1e-3, lr: float = 1e-6) -> Step:
    tensors = list(model.parameters())

    def perturb(seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        for p in tensors:
            z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.data.device, dtype=p.data.dtype)
            p.data = p.data + scale * z * eps

    @torch.inference_mode()
    def step() -> None:
        seed = 7
        perturb(seed, 1)
        up = nll(model, ids, response_only=False).mean()
        perturb(seed, -2)
        down = nll(model, ids, response_only=False).mean()
        perturb(seed, 1)
        g = ((up - down) / (2 * eps)).item()
        torch.manual_seed(seed)
        for p in tensors:
            z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.data.device, dtype=p.data.dtype)
            p.data = p.data - lr * (g * z)

    return step


def floor(model: nn.Module, ids: Tensor) -> Step:
    @torch.inference_mode()
    def step() -> None:
        for _ in range(2):
            model(input_ids=ids, use_cache=False)

    return step


def ours(model: nn.Module, ids: Tensor, layers: list[str], *, response_only: bool, prefix: str, noise: str) -> Step:
    refiner = ZeroOrderRefiner(
        model,
        lambda m, batch: nll(m, batch, response_only),
        layers=layers,
        mu=1e-3,
        lr=1e-6,
        prefix=prefix,
        noise=noise,
    )
    return lambda: refiner.step(ids)


def most_sensitive(model: nn.Module, ids: Tensor, count: int) -> list[str]:
    """The probe's own choice, by one draw."""
    groups = weight_groups(model)
    layers = decoder_layers(groups)
    own = {k: groups[k] for k in layers}
    sides = sensitivity(model, lambda m, batch: nll(m, batch, True), [ids], own, sigma=0.1, draws=1, seed=0)
    best = sorted(layers, key=lambda k: -sides[k].rise.mean().item())[:count]
    return sorted(best, key=layers.index)


def variants(model: nn.Module, ids: Tensor, chosen: list[str], quarter: int) -> dict[str, Callable[[], Step]]:
    """Name -> a function that prepares the step."""
    layers = decoder_layers(weight_groups(model))
    top, bottom = layers[-quarter:], layers[:quarter]
    plain = {"response_only": False, "prefix": "off", "noise": "gaussian"}
    signs = plain | {"noise": "rademacher"}
    short = signs | {"response_only": True}
    run = short | {"prefix": "run"}
    return {
        "(a) reference": lambda: reference(model, ids),
        "all layers, gaussian": lambda: ours(model, ids, layers, **plain),
        "all layers, rademacher": lambda: ours(model, ids, layers, **signs),
        "all layers, + response logits": lambda: ours(model, ids, layers, **short),
        "top quarter": lambda: ours(model, ids, top, **short),
        "top quarter, + prefix of the step": lambda: ours(model, ids, top, **(short | {"prefix": "step"})),
        "top quarter, + prefix of the run": lambda: ours(model, ids, top, **run),
        "bottom quarter, + prefix of the run": lambda: ours(model, ids, bottom, **run),
        f"probe's choice ({_span(chosen)}), + prefix": lambda: ours(model, ids, chosen, **run),
    }


def _span(layers: list[str]) -> str:
    return " ".join(name.split(".")[1] for name in layers)


def selected(name: str, model: nn.Module, chosen: list[str], quarter: int) -> list[nn.Parameter]:
    """The tensors that a variant of ours refines."""
    groups = weight_groups(model)
    layers = decoder_layers(groups)
    picked = layers if "all" in name else layers[-quarter:] if "top" in name else layers[:quarter]
    picked = chosen if "probe" in name else picked
    return [p for layer in picked for p in groups[layer].values()]


def bytes_moved(name: str, model: nn.Module, tensors: list[nn.Parameter]) -> int:
    """By the weights' part of a step, forwards aside: two writes and one move in ours."""
    if "reference" in name:
        return REFERENCE_PASSES * sum(p.nbytes for p in model.parameters())
    return sum(3 * (4 * p.numel() + p.nbytes) + 4 * p.numel() for p in tensors)


def measured(steps: dict[str, Step], repeats: int, device: str) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):  # the first round warms up
        for name, step in steps.items():
            wait(device)
            start = time.perf_counter()
            step()
            wait(device)
            if repeat:
                times[name].append(time.perf_counter() - start)
    return times


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(arguments: argparse.Namespace, tokens: int, variant: int, step: Step) -> int:
    """Peak bytes of one variant: of what torch holds on a card; else above the bare process, in one of its own."""
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    command = [sys.executable, __file__, "--shape", arguments.shape, "--tokens", str(tokens), "--only", str(variant)]
    command += ["--threads", str(arguments.threads), "--device", arguments.device, "--dtype", arguments.dtype]
    command += ["--layers", str(arguments.layers)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(ended.stdout.split()[-1])


def resident(which: str) -> int:
    """`VmRSS`, the bytes in memory now, or `VmHWM`, their peak. (`ru_maxrss` counts the parent process too.)"""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[which].split()[0]) * 1024


def table(arguments: argparse.Namespace, model: nn.Module, tokens: int, chosen: list[str]) -> list[dict[str, Any]]:
    quarter = _quarter(arguments)
    ids = batch_of(tokens, SHAPES[arguments.shape][5], arguments.device)
    bare, floors, rows = floor(model, ids), [], []
    for place, (name, prepare) in enumerate(variants(model, ids, chosen, quarter).items()):
        if arguments.variants and not any(part in name for part in arguments.variants):
            continue
        step = prepare()
        times = measured({"floor": bare, "step": step}, arguments.repeats, arguments.device)
        floors += times["floor"]
        tensors = [] if name.startswith("(a)") else selected(name, model, chosen, quarter)
        row = {
            "tokens": tokens,
            "variant": name,
            "seconds": statistics.median(times["step"]),
            "spread": max(times["step"]) - min(times["step"]),
            "of the floor": statistics.median(times["step"]) / statistics.median(times["floor"]),
            "weights moved, GB": bytes_moved(name, model, tensors) / 1e9,
            "masters, GB": 4 * sum(p.numel() for p in tensors) / 1e9,
        }
        if not arguments.no_memory:
            row["peak memory, GB"] = peak_memory(arguments, tokens, place, step) / 1e9
        rows.append(row)
        del step
        gc.collect()
    (replay,) = [row["of the floor"] for row in rows if row["variant"].startswith("(a)")] or [None]
    for row in rows:
        row["of (a)"] = replay and row["of the floor"] / replay
    return [floor_row(tokens, floors), *rows]


def floor_row(tokens: int, times: list[float]) -> dict[str, Any]:
    median, spread = statistics.median(times), max(times) - min(times)
    return {"tokens": tokens, "variant": "(c) floor", "seconds": median, "spread": spread, "of the floor": 1.0}


def margins(arguments: argparse.Namespace, model: nn.Module) -> list[dict[str, Any]]:
    """A step of all layers with the margin loss, on prompts of 64 tokens and two openings of 4."""
    from holdfast.methods.batches import Batch
    from holdfast.methods.losses import margin
    from holdfast.models.likelihood import Told

    device, vocabulary = torch.device(arguments.device), SHAPES[arguments.shape][5]
    prompts = batch_of(64 * arguments.margin, vocabulary, arguments.device)[:, :64].tolist()
    openings = [prompts[0][:4], prompts[0][4:8]]
    told = Told([(prompt, openings) for prompt in prompts], device)
    sign = torch.tensor([1.0, -1.0], device=device).repeat(len(prompts))[: len(prompts)]
    batch, ids = Batch(told, sign, 1), torch.tensor([p + o for o in openings for p in prompts], device=device)
    layers = decoder_layers(weight_groups(model))
    given: dict[str, Any] = {"layers": layers, "mu": 1e-3, "lr": 1e-6, "prefix": "off", "noise": "rademacher"}
    refiner = ZeroOrderRefiner(model, margin, **given)
    work: dict[str, Step] = {"floor": floor(model, ids), "step": lambda: refiner.step(batch)}
    times = measured(work, arguments.repeats, arguments.device)
    step, bare = (statistics.median(times[name]) for name in ("step", "floor"))
    spread = max(times["step"]) - min(times["step"])
    row = {"prompts": len(prompts), "variant": "all layers, margin of two openings", "seconds": step, "spread": spread}
    return [floor_row(ids.numel(), times["floor"]), {**row, "of the floor": step / bare}]


def _quarter(arguments: argparse.Namespace) -> int:
    return max(1, round(SHAPES[arguments.shape][2] * arguments.layers))


def rows_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    model = build(arguments.shape, getattr(torch, arguments.dtype), arguments.device)
    if arguments.margin:
        return margins(arguments, model)
    ids = batch_of(min(arguments.tokens), SHAPES[arguments.shape][5], arguments.device)
    chosen = most_sensitive(model, ids, _quarter(arguments))
    return [row for tokens in arguments.tokens for row in table(arguments, model, tokens, chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-135m")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512])
    parser.add_argument(
        "--layers", type=float, default=0.25, help="share of the layers that are refined (default .25)"
    )
    parser.add_argument("--margin", type=int, metavar="PROMPTS", help="the margin loss on so many prompts")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--variants", nargs="+", help="parts of the names of those to measure (default all)")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, a process per variant")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only is not None:
        print(alone(arguments))
        return
    rows = rows_of(arguments)
    setting = {k: getattr(arguments, k) for k in ("shape", "device", "dtype", "threads", "repeats")}
    if arguments.json:
        print(json.dumps({"setting": setting, "rows": rows}, indent=1))
        return
    from tabulate import tabulate

    print(" ".join(f"{k}={v}" for k, v in setting.items()))
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))


def alone(arguments: argparse.Namespace) -> int:
    """Peak bytes of three steps of the one variant asked for, above the process without a model."""
    # The bare process has transformers, numba and the compiled kernels in it.
    small = build("tiny", getattr(torch, arguments.dtype), arguments.device)
    ids = batch_of(64, SHAPES["tiny"][5], arguments.device)
    list(variants(small, ids, ["layer.0"], 1).values())[arguments.only]()()
    del small
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    bare = resident("VmRSS")
    model = build(arguments.shape, getattr(torch, arguments.dtype), arguments.device)
    ids = batch_of(arguments.tokens[0], SHAPES[arguments.shape][5], arguments.device)
    layers = decoder_layers(weight_groups(model))
    quarter = _quarter(arguments)
    step = list(variants(model, ids, layers[:quarter], quarter).values())[arguments.only]()
    for _ in range(3):
        step()
    return resident("VmHWM") - bare


if __name__ == "__main__":
    main()
