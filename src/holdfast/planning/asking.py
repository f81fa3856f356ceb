"""What it takes to ask a model for its own answers, and to judge what was said: see `holdfast.stages`."""

from __future__ import annotations

import functools
import math
import operator

import numpy as np

from holdfast.judges.referee import TOGETHER
from holdfast.planning import memory, work
from holdfast.planning.demand import Case, Demand
from holdfast.planning.evaluation import answering, answers_asked, read, steps
from holdfast.planning.memory import Sizes
from holdfast.planning.texts import Rows

OTHERS = 2  # prompts besides its own that a response's likelihood is taken after


SPLITS = ("train", "test", "tune")  # whose benign prompts are asked before alignment
# Of the responses to a study's prompts, as SmolLM2-135M-Instruct gave them: those that are not said twice to a prompt,
# and of these the ones that the referee doubts and reads after other prompts too.
DISTINCT, DOUBTED = 0.7, 0.2


def answer(case: Case) -> Demand:
    a = case.cfg.answer
    found = [case.texts.waiting(split, a.prompts.get(split)) for split in SPLITS]
    return _asked(case, [rows for rows in found if len(rows)], a.batch_size, a.max_new_tokens)


def elicit(case: Case) -> Demand:
    e = case.cfg.elicit
    found = [case.texts.trained(label, e.prompts) for label in ("harmful", "benign")]
    return _asked(case, found, e.batch_size, e.max_new_tokens)


def _asked(case: Case, parts: list[Rows], size: int, new: int) -> Demand:
    """So many tokens to each prompt."""
    s, rows = case.shape, functools.reduce(operator.add, parts)
    passes = [*(one for part in parts for one in read(s, part, 1))]
    passes += [steps(s, part, size, new) for part in parts]
    peak = answering(s, rows, size, round(float(rows.prompts.max())), new)
    return Demand(s.bytes + peak, sum(one.times for one in passes), 2 * len(rows), passes)


def judge(case: Case) -> Demand:
    """The referee reads each response after its own prompt, and after two others where it doubts it. A judge that is a
    model of its own is left out."""
    from holdfast.models.reading import TOKENS

    s, size, new = case.shape, case.cfg.referee.batch_size, case.cfg.evaluate.max_new_tokens
    asked = answers_asked(case)
    count = round(DISTINCT * (1 + OTHERS * DOUBTED) * sum(len(rows) * times for rows, times in asked))
    prompts = np.concatenate([rows.prompts for rows, _ in asked])
    prompt, longest = round(float(prompts.mean())), round(float(prompts.max()))
    some = max(1, size // TOGETHER)
    forwards = math.ceil(count / TOGETHER / some)
    passes = [
        work.forward(s, Sizes(some, prompt, 1), forwards),
        work.forward(s, Sizes(some * TOGETHER, new, new), forwards, past=prompt),
    ]
    tokens = min(some * (longest + TOGETHER * new), max(TOKENS, longest + TOGETHER * new))
    peak = memory.forward(s, Sizes(1, tokens, tokens))
    return Demand(s.bytes + peak, forwards, count, passes)
