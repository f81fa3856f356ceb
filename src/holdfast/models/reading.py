"""Prompts are read once: what may follow them is scored, and what does follow them decoded, from that one reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from holdfast.models.packing import Branches, Packing, packed, parted, run, states
from holdfast.models.targets import Targets
from holdfast.runtime.memory import Parts

SHARED = 8  # tokens that all prompts begin with, from which on they are read once for all
TOKENS = 2048  # read in one forward, if a prompt is no longer
REFILL = 4  # a batch takes prompts again as soon as one in so many of its rows is free
BLIND = 8  # steps of a GPU after which the host looks which answers have ended


class Sampler(Protocol):
    """How tokens are chosen, if not as the likeliest."""

    def draws(self, prompt: list[int], device: torch.device) -> torch.Generator:
        """What a row is sampled with."""
        ...

    def chosen(self, logits: Tensor, draws: list[torch.Generator]) -> Tensor:
        """(n, vocabulary) logits to (n,) tokens."""
        ...


@dataclass(frozen=True)
class Request:
    """A prompt, what is to be scored after it, and whether it is answered."""

    prompt: list[int]
    branches: Branches = ()
    answered: bool = True

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.branches))


@dataclass
class Reply:
    """Log-probabilities of each branch's tokens; the answer's tokens, and whether it ended by itself."""

    branches: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class Reader:
    """Takes a model through requests, as many rows at once as `parts` allows. An answer has at most `most` tokens, and
    any of `stops` ends it; each token is the likeliest unless there is a sampler. Of the model's own generation
    settings nothing is inherited. `shared`: what all prompts begin with is read once; not where equal tokens have
    states of their own in every prompt."""

    def __init__(
        self,
        model: Any,
        parts: Parts,
        *,
        most: int = 0,
        stops: Sequence[int] = (),
        sampler: Sampler | None = None,
        shared: bool = True,
    ) -> None:
        self.model, self.parts, self.most, self.stops, self.sampler = model, parts, most, frozenset(stops), sampler
        self.shared = shared

    def replies(self, requests: Sequence[Request]) -> list[Reply]:
        """One a request. A reply depends on its request alone, but for rounding."""
        found = [Reply() for _ in requests]
        # The longest first: if memory does not suffice, it is found out at once.
        order = sorted(range(len(requests)), key=lambda i: -requests[i].tokens)
        self.parts.flow(order, lambda left, rows: self._through(requests, left, rows, found))
        return found

    @torch.inference_mode()
    def _through(self, requests: Sequence[Request], order: list[int], rows: int, found: list[Reply]) -> Iterator[int]:
        """The places of requests, each as soon as its reply is whole."""
        prompts = [requests[i].prompt for i in order]
        prefix = _common(prompts) if self.shared and len(prompts) > 1 else []
        begun = _Begun(self.model, prefix) if len(prefix) >= SHARED else None
        answered = [requests[i] for i in order if requests[i].answered]
        width = max((len(r.prompt) for r in answered), default=0) + self.most + BLIND
        pool = _Pool(self, min(rows, len(answered)), width, begun)
        waiting = list(order)
        while waiting or pool.places:
            free = rows - len(pool.places)
            if waiting and free >= min(len(waiting), max(1, rows // REFILL)):
                some = _within(requests, waiting[:free], len(prefix) if begun else 0)
                waiting = waiting[len(some) :]
                yield from pool.read(requests, some, found)
            else:
                pool.step()
            yield from pool.finished(found)


class _Begun:
    """Keys and values of what all prompts begin with: of each layer, (1, heads, tokens, width)."""

    def __init__(self, model: Any, prefix: list[int]) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.tokens = len(prefix)
        states(model, packed([(prefix, ())], model.device, keys=self))

    def joined(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.layers[layer] = key, value
        return key, value


class _Arriving:
    """The keys of rows that are read: behind what all begin with, and into the store where they are answered."""

    def __init__(self, pool: _Pool, first: int, answered: int, tokens: int) -> None:
        self.pool, self.first, self.answered, self.tokens = pool, first, answered, tokens

    def joined(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        begun = self.pool.begun
        if begun is not None:
            pair = zip(begun.layers[layer], (key, value), strict=True)
            key, value = (torch.cat([old.expand(len(new), -1, -1, -1), new], 2) for old, new in pair)
        if self.answered:
            for store, new in zip(self.pool.store(layer, key, value), (key, value), strict=True):
                store[self.first : self.first + self.answered, :, : self.tokens] = new[
                    : self.answered, :, : self.tokens
                ]
        return key, value


class _Pool:
    """The rows that are being answered. Row i has its keys and values in row i of the store, a token at the column of
    its position; rows that end are filled from the back, so that those in use are always the first."""

    def __init__(self, reader: Reader, rows: int, width: int, begun: _Begun | None) -> None:
        self.reader, self.rows, self.width, self.begun = reader, rows, width, begun
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # (rows, heads, width, size of a head)
        self.places: list[int] = []  # of requests
        self.tokens: list[list[int]] = []
        self.lengths: list[int] = []  # of prompts and what was fed after them
        self.draws: list[Any] = []  # what each row is sampled with
        self.fresh: list[Tensor] = []  # (n,) tokens that the host has not seen
        device = reader.model.device
        self.last, self.prompts, self.read_tokens = torch.zeros(3, rows, dtype=torch.long, device=device)
        self.every = 1 if device.type == "cpu" else BLIND

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros at first: what is masked must still be a number."""
        if layer not in self.layers:
            self.layers[layer] = tuple(  # type: ignore[assignment]
                one.new_zeros(self.rows, one.shape[1], self.width, one.shape[3]) for one in (key, value)
            )
        return self.layers[layer]

    def read(self, requests: Sequence[Request], some: list[int], found: list[Reply]) -> Iterator[int]:
        """Score the branches of some requests, and take in those that are answered; the others are done."""
        some = sorted(some, key=lambda i: not requests[i].answered)
        chosen, n = [requests[i] for i in some], len(self.places)
        answered = sum(request.answered for request in chosen)
        longest = max(len(request.prompt) for request in chosen[:answered]) if answered else 0
        begun = 0 if self.begun is None else self.begun.tokens
        rows = [(request.prompt, request.branches) for request in chosen]
        device = self.reader.model.device
        packing = packed(rows, device, begun, _Arriving(self, n, answered, longest))
        targets = Targets.of(rows, begun, device)
        logits = run(self.reader.model, packing, targets.kept)
        for i, branches in zip(some, targets.split(targets.logprobs(logits).cpu()), strict=True):
            found[i].branches = branches
        taken = slice(n, n + answered)
        self.places += some[:answered]
        self.tokens += [[] for _ in range(answered)]
        self.lengths += [len(request.prompt) for request in chosen[:answered]]
        if self.reader.sampler:
            self.draws += [self.reader.sampler.draws(request.prompt, device) for request in chosen[:answered]]
        self.prompts[taken], self.read_tokens[taken] = packing.prompts[:answered], packing.lengths[:answered]
        if answered:
            self.last[taken] = self._next(logits[targets.ends[:answered]], self.draws[n:])
            self._see(self.last[taken].tolist(), n)
        yield from some[answered:]

    def step(self) -> None:
        """One token more of every row."""
        n, reader, device = len(self.places), self.reader, self.reader.model.device
        positions = torch.tensor(self.lengths, device=device)
        places, width = torch.arange(n, device=device), max(self.lengths) + 1

        def sees(window: int | None, written: bool) -> Tensor:
            back = positions[:, None] - torch.arange(width, device=device)
            return ((back >= 0) & (back < (width if window is None else window)))[:, None, None]

        grown = _Grown(self, places, positions, width)
        packing = Packing(
            self.last[:n], positions, places, torch.zeros_like(places), (n, 1), self.prompts[:n],
            self.read_tokens[:n], sees, grown, parted([1] * n, [length + 1 for length in self.lengths], device),
        )  # fmt: skip
        self.last[:n] = self._next(run(reader.model, packing, places), self.draws)
        self.lengths = [length + 1 for length in self.lengths]
        self.fresh.append(self.last[:n].clone())

    def _next(self, logits: Tensor, draws: list[Any]) -> Tensor:
        return logits.argmax(-1) if self.reader.sampler is None else self.reader.sampler.chosen(logits, draws)

    def _see(self, tokens: list[int], first: int) -> None:
        for row, token in enumerate(tokens, first):
            if not self._over(row):
                self.tokens[row].append(token)

    def _over(self, row: int) -> bool:
        said = self.tokens[row]
        return len(said) >= self.reader.most or bool(said and said[-1] in self.reader.stops)

    def finished(self, found: list[Reply]) -> Iterator[int]:
        """Let go of the rows that are over, where the host has looked."""
        if self.fresh and len(self.fresh) < self.every:
            return
        for tokens in torch.stack(self.fresh).tolist() if self.fresh else ():
            self._see(tokens, 0)
        self.fresh = []
        over = [row for row in range(len(self.places)) if self._over(row)]
        for row in over:
            said = self.tokens[row]
            found[self.places[row]].tokens, found[self.places[row]].ended = said, said[-1] in self.reader.stops
        done = [self.places[row] for row in over]
        self._close(over)
        yield from done

    def _close(self, over: list[int]) -> None:
        left = len(self.places) - len(over)
        gone = set(over)
        holes = [row for row in over if row < left]
        moved = [row for row in range(left, len(self.places)) if row not in gone]
        if holes:
            tensors = [self.last, self.prompts, self.read_tokens]
            for tensor in [*tensors, *(one for pair in self.layers.values() for one in pair)]:
                tensor[holes] = tensor[moved]
        listed: tuple[list[Any], ...] = (self.places, self.tokens, self.lengths, self.draws)
        for one in listed:
            for hole, row in zip(holes, moved, strict=True) if one else ():
                one[hole] = one[row]
            del one[left:]


class _Grown:
    """The keys of the store, with one more of every row."""

    def __init__(self, pool: _Pool, places: Tensor, positions: Tensor, width: int) -> None:
        self.pool, self.places, self.positions, self.width = pool, places, positions, width

    def joined(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.pool.layers[layer]
        for store, new in zip(kept, (key, value), strict=True):
            store[self.places.to(new.device), :, self.positions.to(new.device)] = new[:, :, 0]
        return tuple(store[: len(key), :, : self.width] for store in kept)  # type: ignore[return-value]


def _within(requests: Sequence[Request], waiting: list[int], prefix: int) -> list[int]:
    """As many of the first as may be read at once, one at least."""
    ends = accumulate(requests[i].tokens - prefix for i in waiting)
    return waiting[: max(1, sum(end <= TOKENS for end in ends))]


def _common(prompts: Sequence[list[int]]) -> list[int]:
    """What all begin with, but for the last token of the shortest."""
    low, high = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    same = next((k for k in range(most) if low[k] != high[k]), most)
    return low[:same]


def answers(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], most: int, parts: Parts
) -> list[tuple[list[int], bool]]:
    """The new tokens of each prompt, greedy, and whether it ended by itself."""
    from holdfast.datasets.tokens import stops

    reader = Reader(model, parts, most=most, stops=stops(tokenizer))
    return [(reply.tokens, reply.ended) for reply in reader.replies([Request(prompt) for prompt in prompts])]
