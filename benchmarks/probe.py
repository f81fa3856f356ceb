"""What a probe of all decoder layers costs with prefix reuse, against full forwards and against its bound.

python benchmarks/probe.py --tokens 128 --layers 12

On one random model of the shape of SmolLM-135M and one batch, half of whose tokens are response tokens, all
parts interleaved in one run, medians. With F the time of one forward, h the share of it that is left when all L
decoder layers are skipped (embeddings, head and loss), one draw takes 2L·F by full forwards and
((1−h)(L+1) + 2Lh)·F with the layers below skipped. A run also makes one recording forward for the batch and checks
once, from the middle layer on, that reuse changes no bit: (1 + ½(1−h) + h)·F, which more draws and batches share.

With `--model FOLDER` instead, all layers of that model are drawn `--draws` times on its own answers to benign prompts
of the embedded world, once all alike and once as a race for the `--keep` most sensitive: what the race saves, and
whether it names the same layers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from zo_step import SHAPES, batch_of, build, measured, nll

from holdfast.zo import Race, sensitivity, weight_groups
from holdfast.zo.layers import decoder_layers
from holdfast.zo.perturb import Masters
from holdfast.zo.prefix import LayerStates

SHAPE = "llama-135m"
Groups = dict[str, dict[str, nn.Parameter]]


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    return nll(model, ids, response_only=True)


@torch.inference_mode()
def full(model: nn.Module, ids: Tensor, groups: Groups) -> None:
    """One draw of every layer by forwards of all layers."""
    for tensors in groups.values():
        masters = Masters(tensors, seed=0)
        for sign in (+1, -1):
            masters.write(sign * 0.1, step=0, query=0)
            losses(model, ids)
        masters.restore()


def parts(model: nn.Module, ids: Tensor) -> dict[str, Callable[[], Any]]:
    every = weight_groups(model)
    groups = {k: every[k] for k in decoder_layers(every)}
    states = LayerStates(model)
    with torch.inference_mode():
        states.record(lambda: losses(model, ids))
    forward = torch.inference_mode()(lambda: losses(model, ids))
    head = torch.inference_mode()(lambda: states.run(len(groups), forward))
    return {
        "forward": lambda: [forward() for _ in range(5)],
        "head": lambda: [head() for _ in range(5)],
        "full": lambda: full(model, ids, groups),
        "prefix": lambda: sensitivity(model, losses, [ids], groups, sigma=0.1, draws=1, seed=0),
    }


def report(times: dict[str, list[float]], layers: int) -> list[tuple[str, float, float]]:
    """(what, seconds, in units of F)."""
    median = {name: statistics.median(found) for name, found in times.items()}
    forward = median["forward"] / 5
    h = median["head"] / 5 / forward
    draw = ((1 - h) * (layers + 1) + 2 * layers * h) * forward
    fixed = (1 + (1 - h) / 2 + h) * forward
    rows = [
        ("F, one forward", forward),
        ("h·F, all decoder layers skipped", h * forward),
        ("2L·F", 2 * layers * forward),
        ("full probe, measured", median["full"]),
        ("bound, one draw", draw),
        ("bound, with recording and check", draw + fixed),
        ("with prefix reuse, measured", median["prefix"]),
    ]
    return [(name, seconds, seconds / forward) for name, seconds in rows]


def race(arguments: argparse.Namespace) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from holdfast.datasets import world
    from holdfast.datasets.tokens import prompt_ids
    from holdfast.models.likelihood import Told, mean_nll
    from holdfast.models.reading import answers
    from holdfast.runtime.memory import Parts

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    prompts = [prompt_ids(tokenizer, prompt) for prompt, _ in list(world.facts())[: arguments.prompts]]
    said = answers(model, tokenizer, prompts, 24, Parts("rows", 64))
    rows = [(prompt, [tokens]) for prompt, (tokens, _) in zip(prompts, said, strict=True)]
    told = [Told(rows[k : k + 8], model.device) for k in range(0, len(rows), 8)]
    every = weight_groups(model)
    layers = decoder_layers(every)
    groups = {layer: every[layer] for layer in layers}
    found, seconds = {}, {}
    for name, given in (("all alike", None), ("a race", Race(layers, arguments.keep))):
        start = time.perf_counter()
        found[name] = sensitivity(
            model, lambda m, b: mean_nll(m, b)[:, 0], told, groups,
            sigma=0.1, draws=arguments.draws, seed=0, race=given,
        )  # fmt: skip
        seconds[name] = time.perf_counter() - start
    means = {n: {g: sides.rise.mean().item() for g, sides in sides_of.items()} for n, sides_of in found.items()}
    best = {n: sorted(layers, key=lambda g: -m[g])[: arguments.keep] for n, m in means.items()}
    drawn = sum(len(sides.up) for sides in found["a race"].values())
    print(f"layers={len(layers)} draws={arguments.draws} prompts={len(rows)} keep={arguments.keep}")
    for name in found:
        print(f"{name:<10} {seconds[name]:7.1f} s   most sensitive: {', '.join(best[name])}")
    print(f"draws made by the race: {drawn} of {len(layers) * arguments.draws}", end="; ")
    print(f"the same {len(set.intersection(*map(set, best.values())))} of {arguments.keep} layers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder: race on it instead")
    parser.add_argument("--draws", type=int, default=8, help="of a race (default 8)")
    parser.add_argument("--keep", type=int, default=4, help="layers that a race is for (default 4)")
    parser.add_argument("--prompts", type=int, default=32, help="of a race (default 32)")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12, help="the lowest ones of the shape's 30 (default 12)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="1 is steadiest on a busy machine"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.model:
        race(arguments)
        return
    from tabulate import tabulate

    model = build(SHAPE, torch.float32, "cpu")
    model.model.layers = model.model.layers[: arguments.layers]  # type: ignore[union-attr,index]
    ids = batch_of(arguments.tokens, SHAPES[SHAPE][5], "cpu")
    times = measured(parts(model, ids), arguments.repeats, "cpu")
    layers = len(model.model.layers)  # type: ignore[union-attr,arg-type]
    rows = report(times, layers)
    print(f"shape={SHAPE} layers={layers} tokens={arguments.tokens} threads={torch.get_num_threads()}", end=" ")
    print(f"repeats={arguments.repeats} h={rows[1][2]:.3f}")
    print(tabulate(rows, headers=["one draw of all layers", "seconds", "of F"], tablefmt="github", floatfmt=".3g"))
    found = {name: seconds for name, seconds, _ in rows}
    reused = found["with prefix reuse, measured"]
    print(f"with reuse / full, measured:        {reused / found['full probe, measured']:.3f}")
    print(f"with reuse / bound, all included:   {reused / found['bound, with recording and check']:.3f}")
    print(f"full / 2L·F:                        {found['full probe, measured'] / found['2L·F']:.3f}")


if __name__ == "__main__":
    main()
