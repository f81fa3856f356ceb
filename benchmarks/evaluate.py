"""What one point of an evaluation costs: every prompt read, answered, and its openings and reference scored.

python benchmarks/evaluate.py --shape llama-135m --prompts 200 --new 64

All variants run in turn in one process, on one random model and the same prompts, half of which have a reference:

(a) plain    transformers' `generate` in batches sorted by length, then a pass for margins, a row an opening, and one
             for references
(b) ours     one reading of every prompt, and all else from it
(c) floor    one forward over the prompts, without padding where it can be had by sorting, and all other tokens at the
             rate of a forward over full rows
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from zo_step import SHAPES, build, wait

from holdfast.models.reading import Reader, Request
from holdfast.runtime.memory import Parts

Rows = list[list[int]]
PLAIN = 64  # rows of a batch of (a) and of the prompts of (c)
NONE = 10**9  # an id that no answer ends with


class Point:
    """The work: prompts of some `shared` tokens and 16 to 64 of their own, openings of 4, references of 32."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        rng, vocabulary = random.Random(0), SHAPES[arguments.shape][5]

        def text(length: int) -> list[int]:
            return [rng.randrange(5, vocabulary) for _ in range(length)]

        begun = text(arguments.shared)
        self.prompts = sorted((begun + text(rng.randint(16, 64)) for _ in range(arguments.prompts)), key=len)
        self.openings = [text(4) for _ in range(4)]
        self.references = [text(32) if k % 2 else [] for k in range(arguments.prompts)]
        self.new, self.rows = arguments.new, arguments.rows

    def batches(self, rows: list[Any]) -> Iterator[list[Any]]:
        for start in range(0, len(rows), PLAIN):
            yield rows[start : start + PLAIN]

    @property
    def told(self) -> list[tuple[list[int], list[int]]]:
        return [(p, r) for p, r in zip(self.prompts, self.references, strict=True) if r]


def padded(rows: Rows, device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """(n, t) ids and their mask."""
    width = max(map(len, rows))
    ends = [([0] * (width - len(row)), row) for row in rows]
    ids = torch.tensor([pads + row if left else row + pads for pads, row in ends], device=device)
    return ids, (ids > 0).long()


def generated(model: Any, point: Point) -> None:
    from transformers import GenerationConfig

    settings = GenerationConfig(max_new_tokens=point.new, do_sample=False, pad_token_id=0, eos_token_id=NONE)
    for some in point.batches(point.prompts):
        ids, attention = padded(some, model.device, left=True)
        model.generate(input_ids=ids, attention_mask=attention, generation_config=settings)


@torch.inference_mode()
def scored(model: Any, some: Rows, last: int) -> None:
    """Log-probabilities of each row's tokens, where any has one of its `last`."""
    ids, _ = padded(some, model.device)
    first = min(map(len, some)) - last - 1
    columns = torch.arange(first, ids.shape[1] - 1, device=ids.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=columns).logits.float()
    logits.gather(-1, ids[:, columns + 1, None])[..., 0] - logits.logsumexp(-1)


def margins(model: Any, point: Point) -> None:
    for some in point.batches(point.prompts):
        for opening in point.openings:
            scored(model, [prompt + opening for prompt in some], len(opening))


def utility(model: Any, point: Point) -> None:
    for some in point.batches(point.told):
        scored(model, [prompt + reference for prompt, reference in some], len(some[0][1]))


def ours(model: Any, point: Point) -> None:
    reader = Reader(model, Parts("rows", point.rows), most=point.new, stops=[NONE])
    requests = [
        Request(prompt, [*point.openings, *([reference] if reference else [])])
        for prompt, reference in zip(point.prompts, point.references, strict=True)
    ]
    found = reader.replies(requests)
    assert all(len(reply.tokens) == point.new for reply in found)


@torch.inference_mode()
def prefill(model: Any, point: Point) -> None:
    for some in point.batches(point.prompts):
        ids, _ = padded(some, model.device, left=True)
        model(input_ids=ids, logits_to_keep=1, use_cache=False)


@torch.inference_mode()
def full(model: Any, point: Point) -> None:
    model(input_ids=torch.ones(8, 64, dtype=torch.long, device=model.device), use_cache=False)


def measured(work: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-135m")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--shared", type=int, default=0, help="tokens that all prompts begin with (default 0)")
    parser.add_argument("--rows", type=int, default=200, help="at once; (a) has 64, which is where it is fastest")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model: Any = build(arguments.shape, getattr(torch, arguments.dtype), arguments.device)
    point = Point(arguments)
    variants = {"generate": generated, "margins": margins, "utility": utility, "ours": ours}
    floors = {"prefill": prefill, "full": full}
    work = {name: (lambda run=run: run(model, point)) for name, run in (variants | floors).items()}
    few = Point(argparse.Namespace(**{**vars(arguments), "prompts": 8, "new": 4}))
    for run in (variants | floors).values():  # warms up
        run(model, few)
    seconds = {n: statistics.median(t) for n, t in measured(work, arguments.repeats, arguments.device).items()}
    scored = sum(len(o) - 1 for o in point.openings) * len(point.prompts) + sum(len(r) - 1 for _, r in point.told)
    decoded, rate = (point.new - 1) * len(point.prompts), 512 / seconds["full"]
    seconds["(a) plain"] = seconds["generate"] + seconds["margins"] + seconds["utility"]
    seconds["(b) ours"] = seconds.pop("ours")
    seconds["(c) floor"] = seconds["prefill"] + (decoded + scored) / rate
    from tabulate import tabulate

    card = f" card={torch.cuda.get_device_name()}" if arguments.device == "cuda" else ""
    print(" ".join(f"{key}={value}" for key, value in vars(arguments).items()) + card)
    print(f"tokens: {sum(map(len, point.prompts))} read, {scored} scored, {decoded} decoded after the first; ")
    print(f"a forward: {rate:.0f} tokens a second")
    rows = [(name, took, took / seconds["(c) floor"], took / seconds["(a) plain"]) for name, took in seconds.items()]
    print(tabulate(rows, headers=["", "seconds", "of (c)", "of (a)"], tablefmt="github", floatfmt=".3g"))


if __name__ == "__main__":
    main()
