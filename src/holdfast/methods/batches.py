"""Batches of training rows, encoded as a loss reads them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from holdfast.datasets.tokens import fitting, prompts_ids, response_ids
from holdfast.errors import UserError
from holdfast.methods.losses import LossFn, Reads, log_ratio, reads
from holdfast.models.likelihood import Told


@dataclass(frozen=True)
class Example:
    prompt: list[int]
    response: list[int]
    rejected: list[int]  # what the data give as such, or else the opening of the other answer
    harmful: bool


@dataclass(frozen=True)
class Batch:
    """`told` is what the loss reads; `sign` is +1 harmful, −1 benign, (n,); `reference` the reference
    model's log-ratios times `beta`, (n,)."""

    told: Told
    sign: Tensor
    refusals: int
    beta: float = 0.0
    reference: Tensor | float = 0.0

    def __len__(self) -> int:
        return len(self.sign)

    def __getitem__(self, rows: slice) -> Batch:
        """Some of the examples."""
        reference = self.reference[rows] if isinstance(self.reference, Tensor) else self.reference
        return replace(self, told=self.told[rows], sign=self.sign[rows], reference=reference)


class Batches:
    """Draws and encodes batches, harmful and benign in equal parts."""

    def __init__(
        self, rows: Any, tokenizer: Any, openings: Any, loss: LossFn, device: torch.device, beta: float = 0.0
    ) -> None:
        encode = [
            [response_ids(tokenizer, o, end=False) for o in group] for group in (openings.refusal, openings.compliance)
        ]
        self.refusals, self.openings = len(encode[0]), encode[0] + encode[1]
        self.reads, self.pad, self.device, self.beta = reads(loss), tokenizer.pad_token_id, device, beta
        self.references: dict[int, float] = {}  # id of an example -> beta times its log-ratio under the reference
        parts = {label: rows[rows["label"] == label] for label in ("harmful", "benign")}
        self.examples = {
            label: [
                Example(
                    prompt,
                    response_ids(tokenizer, r.response, end=getattr(r, "ended", True)),
                    response_ids(tokenizer, r.rejected, end=True)
                    if r.rejected
                    else encode[1 if r.label == "harmful" else 0][0],
                    r.label == "harmful",
                )
                for prompt, r in zip(prompts_ids(tokenizer, found), found.itertuples(), strict=True)
            ]
            for label, found in parts.items()
        }
        longest = max(map(len, self.openings))
        for label, found in self.examples.items():
            lengths = (len(e.prompt) + max(longest, len(e.response), len(e.rejected)) for e in found)
            self.examples[label] = fitting(found, lengths, tokenizer.model_max_length)

    @torch.inference_mode()
    def refer(self, model: Any, size: int) -> int:
        """Take `model` as it is now for the reference of `dpo`; gives how many forwards of `size` rows that took."""
        everything = [e for examples in self.examples.values() for e in examples]
        chunks = [everything[start : start + size] for start in range(0, len(everything), size)]
        for chunk in chunks:
            ratios = (self.beta * log_ratio(model, self.encode(chunk))).tolist()
            self.references.update(zip(map(id, chunk), ratios, strict=True))
        return len(chunks)

    def stream(self, size: int, seed: int) -> Iterator[Batch]:
        """Endless batches; two streams of the same seed are the same."""
        rng = random.Random(seed)
        halves = {"harmful": size // 2, "benign": size - size // 2}
        while True:
            yield self.encode([e for label, n in halves.items() for e in rng.choices(self.examples[label], k=n)])

    def set_aside(self, share: float, size: int) -> list[Batch]:
        """Take a share of each label's examples out of what streams draw from, the last ones, as batches of `size`
        rows. Raises `UserError` where one would be left without."""
        held = {}
        for label, found in self.examples.items():
            count = max(1, round(share * len(found)))
            if count >= len(found):
                raise UserError(f"{len(found)} {label} training prompts are too few to set some aside; give more")
            self.examples[label], held[label] = found[:-count], found[-count:]
        everything = [*held["harmful"], *held["benign"]]
        return [self.encode(everything[start : start + size]) for start in range(0, len(everything), size)]

    def encode(self, examples: list[Example]) -> Batch:
        texts: dict[Reads, Callable[[Example], list[list[int]]]] = {
            "openings": lambda e: self.openings,
            "response": lambda e: [e.response],
            "pair": lambda e: [e.response, e.rejected],
        }
        told = Told([(e.prompt, texts[self.reads](e)) for e in examples], self.device)
        sign = torch.tensor([1.0 if e.harmful else -1.0 for e in examples], device=self.device)
        reference = torch.tensor([self.references.get(id(e), 0.0) for e in examples], device=self.device)
        return Batch(told, sign, self.refusals, self.beta, reference)

    def digest(self) -> str:
        """A hash of the tokens of all examples and openings: of the data, the tokenizer, its template and the
        openings."""
        tokens = [[(e.prompt, e.response, e.rejected) for e in found] for found in self.examples.values()]
        return hashlib.sha256(repr((tokens, self.openings, self.refusals)).encode()).hexdigest()

    @property
    def sequences(self) -> int:
        """How many sequences stand for one example."""
        return {"response": 1, "pair": 2, "openings": len(self.openings)}[self.reads]
