"""What an evaluation takes: see `holdfast.evaluation` and `holdfast.perturbations`."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import replace
from typing import Any, NamedTuple

from holdfast.perturbations.finetuning import FineTuning
from holdfast.perturbations.pruning import Wanda
from holdfast.planning import memory, work
from holdfast.planning.demand import Case, Demand
from holdfast.planning.memory import FLOAT, Sizes
from holdfast.planning.shape import Shape
from holdfast.planning.texts import Rows
from holdfast.planning.work import Pass

SPLITS = (("test", "benign"), ("test", "harmful"), ("threshold", "benign"))
PACKED, UNPACKED = 28, 10  # bytes a weight, of one matrix at a time: as it is packed, and as a forward unpacks it
PRUNED = 24  # bytes a weight, of one matrix at a time: its scores, their order, what is made of it


def evaluate(case: Case) -> Demand:
    """Every point of the grid on every prompt, which is read once at each."""
    e, s = case.cfg.evaluate, case.shape
    benign, harmful, *threshold = (case.texts.evaluated(*part) for part in SPLITS[: 3 if e.margin_draws else 2])
    test, scored = benign + harmful, functools.reduce(operator.add, [benign, harmful, *threshold])
    scoring = _scoring(case, scored)
    beside = [kept(case, perturb) for perturb in case.cfg.perturb.values()]
    peak = max([scoring, *(max(alone, during + scoring) for alone, during in beside)])
    every, _, margins, _ = _counts(case)
    passes = [*read(s, test, every), branches(s, benign, float(benign.responses.mean()) - 1, every)]
    passes += [one for rows in threshold for one in read(s, rows, margins)]
    passes += [branches(s, scored, k - 1, margins) for k in case.texts.score if k > 1]
    sequences = margins * len(scored) + every * len(benign)
    for place, (rows, times) in enumerate(answers_asked(case)):
        passes.append(steps(s, rows, e.batch_size, e.max_new_tokens, times))
        passes += read(s, rows, times) if place else []  # the test prompts' reading is counted above
        sequences += times * len(rows)
    forwards = sum(one.times for one in passes if one.layers)
    passes += [one for perturb in case.cfg.perturb.values() for one in _perturbed(case, perturb)]
    return Demand(s.bytes + peak, forwards, sequences, passes)


def answers_asked(case: Case) -> list[tuple[Rows, int]]:
    """Prompts that are answered, and how many times."""
    counts = _counts(case)
    test = case.texts.evaluated("test", "benign") + case.texts.evaluated("test", "harmful")
    tune = case.texts.evaluated("tune", "harmful")
    return [(test, counts.answered), *[(tune, counts.tuned)] * bool(counts.tuned and len(tune))]


def _counts(case: Case) -> Points:
    """Over the clean model and the whole grid."""
    scored = case.cfg.evaluate.margin_draws > 0
    each = [Points(1, 1, int(scored), 0)] + [_points(case, perturb) for perturb in case.cfg.perturb.values()]
    return Points(*(sum(counts) for counts in zip(*each, strict=True)))


def _scoring(case: Case, scored: Rows) -> float:
    """The most of a reading with its branches and of a step of decoding, beside the keys and values of what is
    answered."""
    e, s = case.cfg.evaluate, case.shape
    told = sum(max(k - 1, 0) for k in case.texts.score) if e.margin_draws else 0
    reference = float(scored.responses.mean()) - 1
    longest = round(float(scored.prompts.max()))
    return answering(s, scored, e.batch_size, longest, e.max_new_tokens, told + reference)


def answering(s: Shape, rows: Rows, size: int, longest: int, new: int, branch: float = 0) -> float:
    """Bytes of a `Reader` at work, with `branch` tokens scored after each prompt."""
    from holdfast.models.reading import BLIND, TOKENS

    size, each = min(size, len(rows)), float(rows.prompts.mean()) + branch
    some = min(max(1, TOKENS / each), len(rows))  # prompts in a forward
    reading = Sizes(math.ceil(some), round(max(each, longest / some)), round(1 + branch))
    most = max(memory.forward(s, one) for one in (reading, Sizes(size, 1, 1)))
    return memory.cache(s, size, longest + new + BLIND) + most


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


def _mean(lengths: Any) -> int:
    return max(1, round(float(lengths.mean())))


def read(s: Shape, rows: Rows, times: float) -> list[Pass]:
    """Prompts without padding, and what each ends with."""
    from holdfast.models.reading import TOKENS

    total, mean = float(rows.prompts.sum()), _mean(rows.prompts)
    forwards = math.ceil(total / TOKENS)
    return [work.forward(s, Sizes(math.ceil(len(rows) / forwards), mean, 1), forwards * times)]


def branches(s: Shape, rows: Rows, tokens: float, times: float) -> Pass:
    """So many tokens after each prompt, in the forwards that read it."""
    batch = Sizes(len(rows), max(1, round(tokens)), max(1, round(tokens)))
    one = work.forward(s, batch, times, past=_mean(rows.prompts))
    return Pass(one.flops, 0, one.moved, 0, one.times)


def steps(s: Shape, rows: Rows, size: int, new: int, times: float = 1) -> Pass:
    """Answers of `new` tokens, `size` rows at once: every response counts with its full length."""
    size = min(size, len(rows))
    each = math.ceil(len(rows) * (new - 1) / size)
    return work.forward(s, Sizes(size, 1, 1), each * times, past=_mean(rows.prompts) + new // 2)


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
