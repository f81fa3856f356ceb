"""What it takes to ask a model for its own answers, and to judge what was said: see `holdfast.stages`."""

from __future__ import annotations

import math

import numpy as np

from holdfast.judges.referee import TOGETHER
from holdfast.planning import memory, work
from holdfast.planning.evaluation import answering, answers_asked, read, steps
from holdfast.planning.memory import Sizes
from holdfast.planning.stages import Case, Demand

OTHERS = 2  # prompts besides its own that a response's likelihood is taken after


def elicit(case: Case) -> Demand:
    e, s = case.cfg.elicit, case.shape
    parts = [case.texts.trained(label, e.prompts) for label in ("harmful", "benign")]
    passes = [*(one for rows in parts for one in read(s, rows, 1))]
    passes += [steps(s, rows, e.batch_size, e.max_new_tokens) for rows in parts]
    rows = parts[0] + parts[1]
    peak = answering(s, rows, e.batch_size, round(float(rows.prompts.max())), e.max_new_tokens)
    return Demand(s.bytes + peak, sum(one.times for one in passes), 2 * len(rows), passes)


def judge(case: Case) -> Demand:
    """The referee reads each response after its own prompt and two others, as if no two responses were the same and
    all were in doubt. A judge that is a model of its own is left out."""
    from holdfast.models.reading import TOKENS

    s, size, new = case.shape, case.cfg.referee.batch_size, case.cfg.evaluate.max_new_tokens
    asked = answers_asked(case)
    count = (1 + OTHERS) * sum(len(rows) * times for rows, times in asked)
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
