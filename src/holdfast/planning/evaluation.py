"""What an evaluation takes: see `holdfast.evaluation` and `holdfast.perturbations`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

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
    """Every point of the grid on every prompt, and the likelihood of all responses at the end."""
    e, s = case.cfg.evaluate, case.shape
    parts = [case.texts.evaluated(*part) for part in SPLITS]
    useful, generated = parts[0], parts[0] + parts[1]
    scored = generated + parts[2]
    if not case.cfg.method.refines:  # headline levels are chosen on it
        scored = scored + case.texts.evaluated("tune", "harmful")
    scoring = _scoring(case, scored)
    beside = [kept(case, perturb) for perturb in case.cfg.perturb.values()]
    peak = max([scoring, *(max(alone, during + scoring) for alone, during in beside)])
    points = [(1, 1)] + [_points(perturb) for perturb in case.cfg.perturb.values()]
    every, answered = (sum(counts) for counts in zip(*points, strict=True))
    passes = [_times(one, every) for one in _scored(case, scored) + _useful(case, useful)]
    passes += [_times(one, answered) for one in _generated(case, generated) + _judged(case, generated)]
    passes += [one for perturb in case.cfg.perturb.values() for one in _perturbed(case, perturb)]
    batches = every * (_batches(scored, e.batch_size) + _batches(useful, e.batch_size))
    batches += 2 * answered * _batches(generated, e.batch_size)
    sequences = every * (len(scored) + len(useful)) + 2 * answered * len(generated)
    return Demand(s.bytes + peak, batches, sequences, passes)


def _scoring(case: Case, scored: Rows) -> float:
    """The most of margins, generation, utility and the likelihood of responses, for a batch of the longest rows."""
    e, s = case.cfg.evaluate, case.shape
    rows = min(e.batch_size, len(scored))
    prompt = round(float(np.sort(scored.prompts)[-rows:].max()))
    spread, new = round(prompt - float(scored.prompts.min())), e.max_new_tokens
    opening = max(case.texts.score)
    told = max(opening, round(float(scored.responses.max()))) if e.utility == "exact_match" else opening
    started = memory.cache(s, rows, prompt) + memory.forward(s, Sizes(rows, prompt, 1))
    continued = (
        memory.cache(s, rows, prompt + told) + memory.logits(s, rows, told) + rows * told * s.vocabulary * FLOAT
    )
    decoded = memory.cache(s, rows, prompt + new) + memory.logits(s, rows, 2)
    answered = memory.forward(s, Sizes(rows, prompt + new, min(prompt + new, new + spread)))
    asked = memory.forward(s, Sizes(rows, prompt, prompt)) if e.utility == "perplexity" else 0
    return max(started, continued, decoded, answered, asked)


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


def _points(perturb: Any) -> tuple[int, int]:
    """How many times all prompts are scored, and how many times some are answered."""
    tries = perturb.draws * perturb.subdraws
    answered = perturb.levels if perturb.generate is None else perturb.generate
    return len(perturb.levels) * tries, len(answered) * tries


def _batches(rows: Rows, size: int) -> int:
    return math.ceil(len(rows) / size)


def _mean(lengths: Any) -> int:
    return max(1, round(float(lengths.mean())))


def _times(one: Pass, times: float) -> Pass:
    return Pass(one.flops, one.weights, one.moved, one.layers, one.times * times)


def _scored(case: Case, rows: Rows) -> list[Pass]:
    """Margins: the prompts once, and every opening after them."""
    s, size = case.shape, min(case.cfg.evaluate.batch_size, len(rows))
    batches, prompt = _batches(rows, size), _mean(rows.prompts)
    openings = [work.forward(s, Sizes(size, k - 1, k), batches, past=prompt) for k in case.texts.score if k > 1]
    return [work.forward(s, Sizes(size, prompt, 1), batches), *openings]


def _useful(case: Case, rows: Rows) -> list[Pass]:
    e, s = case.cfg.evaluate, case.shape
    size, prompt, answer = min(e.batch_size, len(rows)), _mean(rows.prompts), _mean(rows.responses)
    batches = _batches(rows, size)
    if e.utility == "perplexity":
        return [work.forward(s, Sizes(size, prompt, prompt), batches)]
    return [
        work.forward(s, Sizes(size, prompt, 1), batches),
        work.forward(s, Sizes(size, answer, answer), batches, past=prompt),
    ]


def _generated(case: Case, rows: Rows) -> list[Pass]:
    """Every response counts with its full length."""
    e, s = case.cfg.evaluate, case.shape
    size, prompt, new = min(e.batch_size, len(rows)), _mean(rows.prompts), e.max_new_tokens
    batches = _batches(rows, size)
    steps = work.forward(s, Sizes(size, 1, 1), batches * (new - 1), past=prompt + new // 2)
    return [work.forward(s, Sizes(size, prompt, 1), batches), steps]


def _judged(case: Case, rows: Rows) -> list[Pass]:
    """The likelihood of the responses; each counts as a different one."""
    e, s = case.cfg.evaluate, case.shape
    size, long = min(e.batch_size, len(rows)), _mean(rows.prompts) + e.max_new_tokens
    return [work.forward(s, Sizes(size, long, e.max_new_tokens), _batches(rows, size))]


def _perturbed(case: Case, perturb: Any) -> list[Pass]:
    """Making the points of one perturbation."""
    s, points = case.shape, _points(perturb)[0]
    if isinstance(perturb, FineTuning):
        batch = _training(case, perturb.batch_size)
        return [*work.backward(s, batch, perturb.draws * sum(perturb.levels)), work.copying(2 * s.bytes, points)]
    if perturb.keeps in ("nothing", "tables"):
        return []
    moved = 2 * s.bytes if perturb.keeps in ("packed", "copy") else 3 * (FLOAT + s.width) * s.matrices
    return [work.copying(moved, points)]
