"""What an evaluation takes: see `holdfast.evaluation` and `holdfast.perturbations`."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from holdfast.perturbations.finetuning import FineTuning
from holdfast.perturbations.pruning import Wanda
from holdfast.planning import memory, work
from holdfast.planning.memory import FLOAT, Sizes
from holdfast.planning.stages import Case, Demand
from holdfast.planning.texts import Rows
from holdfast.planning.work import Pass

SPLITS = (("test", "benign"), ("test", "harmful"), ("threshold", "benign"))
PACKED, UNPACKED = 28, 10  # bytes a weight, of one matrix at a time: as it is packed, and as a forward unpacks it
PRUNED = 24  # bytes a weight, of one matrix at a time: its scores, their order, what is made of it


def evaluate(case: Case) -> Demand:
    """Every point of the grid on every prompt."""
    e, s = case.cfg.evaluate, case.shape
    parts = [case.texts.evaluated(*part) for part in SPLITS[: 3 if e.margin_draws else 2]]
    useful, scored = parts[0], functools.reduce(operator.add, parts)
    scoring = _scoring(case, scored)
    beside = [kept(case, perturb) for perturb in case.cfg.perturb.values()]
    peak = max([scoring, *(max(alone, during + scoring) for alone, during in beside)])
    every, _, margins, _ = _counts(case)
    passes = [_times(one, margins) for one in _scored(case, scored)]
    passes += [_times(one, every) for one in _useful(case, useful)]
    batches = margins * batches_of(scored, e.batch_size) + every * batches_of(useful, e.batch_size)
    sequences = margins * len(scored) + every * len(useful)
    for rows, times in answers_asked(case):
        passes += [_times(one, times) for one in generated(case, rows, e.batch_size, e.max_new_tokens)]
        batches, sequences = batches + times * batches_of(rows, e.batch_size), sequences + times * len(rows)
    passes += [one for perturb in case.cfg.perturb.values() for one in _perturbed(case, perturb)]
    return Demand(s.bytes + peak, batches, sequences, passes)


def answers_asked(case: Case) -> list[tuple[Rows, int]]:
    """Prompts that are answered, and how many times."""
    counts = _counts(case)
    test = case.texts.evaluated("test", "benign") + case.texts.evaluated("test", "harmful")
    tune = [(case.texts.evaluated("tune", "harmful"), counts.tuned)] if counts.tuned else []
    return [(test, counts.answered), *tune]


def _counts(case: Case) -> Points:
    """Over the clean model and the whole grid."""
    scored = case.cfg.evaluate.margin_draws > 0
    each = [Points(1, 1, int(scored), 0)] + [_points(case, perturb) for perturb in case.cfg.perturb.values()]
    return Points(*(sum(counts) for counts in zip(*each, strict=True)))


def _scoring(case: Case, scored: Rows) -> float:
    """The most of margins, generation, utility and the likelihood of responses, for a batch of the longest rows."""
    e, s = case.cfg.evaluate, case.shape
    rows = min(e.batch_size, len(scored))
    prompt = round(float(np.sort(scored.prompts)[-rows:].max()))
    spread, new = round(prompt - float(scored.prompts.min())), e.max_new_tokens
    told = max(*case.texts.score, round(float(scored.responses.max())))
    started = memory.cache(s, rows, prompt) + memory.forward(s, Sizes(rows, prompt, 1))
    continued = (
        memory.cache(s, rows, prompt + told) + memory.logits(s, rows, told) + rows * told * s.vocabulary * FLOAT
    )
    decoded = memory.cache(s, rows, prompt + new) + memory.logits(s, rows, 2)
    answered = memory.forward(s, Sizes(rows, prompt + new, min(prompt + new, new + spread)))
    return max(started, continued, decoded, answered)


def kept(case: Case, perturb: Any) -> tuple[float, float]:
    """Bytes beside the model: before the point is scored, and while it is. A snapshot of the weights is in main
    memory, which on a CPU is the same."""
    s, keeps = case.shape, perturb.keeps
    snapshot = 0 if case.cuda else s.width * s.matrices
    if keeps == "nothing":
        return 0, 0
    if keeps == "masters":
        return FLOAT * (s.matrices + s.matrix), FLOAT * s.matrices
    if keeps == "tables":
        tables = 1024 * FLOAT * s.hidden * len(s.layers)
        return tables, tables
    if keeps == "packed":
        packed = s.matrices * perturb.stored / 8
        return packed + PACKED * s.matrix, packed + UNPACKED * s.matrix
    if keeps == "copy":
        batch = _training(case, perturb.batch_size)
        training = memory.backward(s, batch, len(s.layers)) + memory.adapted(s, batch, perturb.rank)
        return s.bytes + training, s.bytes
    making: float = snapshot + PRUNED * s.matrix
    if isinstance(perturb, Wanda):
        read = replace(_training(case, min(perturb.calibration, case.cfg.evaluate.batch_size)), columns=1)
        making = max(memory.forward(s, read) + 3 * FLOAT * s.intermediate * read.size, making)
    return making, snapshot


def _training(case: Case, rows: int) -> Sizes:
    """A batch of training rows with their responses, of the longest."""
    return case.texts.train.batch(rows, 1, case.texts.train.responses, len(case.texts.train))


def _points(case: Case, perturb: Any) -> Points:
    e = case.cfg.evaluate
    answered = perturb.levels if perturb.generate is None else perturb.generate
    draws = {level: perturb.draws_at(level) for level in perturb.levels}
    margins = sum(min(count, e.margin_draws) for count in draws.values())
    said = sum(draws[level] for level in answered)
    others = sum(min(draws[level], e.margin_draws) for level in draws if level not in answered)
    # Headline levels are chosen on the reference, which alone answers tuning prompts.
    tuned = 0 if case.cfg.method.refines else sum(len(perturb.tuning(level, e.tune_draws)) for level in answered)
    return Points(said + others, said, margins, tuned)


class Points(NamedTuple):
    """How many times benign test prompts are scored for utility, test prompts answered, margins taken, and tuning
    prompts answered."""

    every: int
    answered: int
    margins: int
    tuned: int


def batches_of(rows: Rows, size: int) -> int:
    return math.ceil(len(rows) / size)


def _mean(lengths: Any) -> int:
    return max(1, round(float(lengths.mean())))


def _times(one: Pass, times: float) -> Pass:
    return Pass(one.flops, one.weights, one.moved, one.layers, one.times * times)


def _scored(case: Case, rows: Rows) -> list[Pass]:
    """Margins: the prompts once, and every opening after them."""
    s, size = case.shape, min(case.cfg.evaluate.batch_size, len(rows))
    batches, prompt = batches_of(rows, size), _mean(rows.prompts)
    openings = [work.forward(s, Sizes(size, k - 1, k), batches, past=prompt) for k in case.texts.score if k > 1]
    return [work.forward(s, Sizes(size, prompt, 1), batches), *openings]


def _useful(case: Case, rows: Rows) -> list[Pass]:
    e, s = case.cfg.evaluate, case.shape
    size, prompt, answer = min(e.batch_size, len(rows)), _mean(rows.prompts), _mean(rows.responses)
    batches = batches_of(rows, size)
    return [work.forward(s, Sizes(size, prompt + answer, answer), batches)]


def generated(case: Case, rows: Rows, size: int, new: int) -> list[Pass]:
    """Answers of `new` tokens in batches of `size`: every response counts with its full length."""
    s, size, prompt = case.shape, min(size, len(rows)), _mean(rows.prompts)
    batches = batches_of(rows, size)
    steps = work.forward(s, Sizes(size, 1, 1), batches * (new - 1), past=prompt + new // 2)
    return [work.forward(s, Sizes(size, prompt, 1), batches), steps]


def _perturbed(case: Case, perturb: Any) -> list[Pass]:
    """Making the points of one perturbation."""
    s, points = case.shape, _points(case, perturb).every
    if isinstance(perturb, FineTuning):
        batch = _training(case, perturb.batch_size)
        return [
            *work.backward(s, batch, sum(level * perturb.draws_at(level) for level in perturb.levels)),
            work.copying(2 * s.bytes, points),
        ]
    if perturb.keeps in ("nothing", "tables"):
        return []
    moved = 2 * s.bytes if perturb.keeps in ("packed", "copy") else 3 * (FLOAT + s.width) * s.matrices
    return [work.copying(moved, points)]
