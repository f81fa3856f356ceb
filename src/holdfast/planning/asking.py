"""What it takes to ask a model for its own answers, and to judge what was said: see `holdfast.stages`."""

from __future__ import annotations

import math

import numpy as np

from holdfast.planning import memory, work
from holdfast.planning.evaluation import answers_asked, batches_of, generated
from holdfast.planning.memory import FLOAT, Sizes
from holdfast.planning.stages import Case, Demand

OTHERS = 2  # prompts besides its own that a response's likelihood is taken after


def elicit(case: Case) -> Demand:
    e, s = case.cfg.elicit, case.shape
    parts = [case.texts.trained(label, e.prompts) for label in ("harmful", "benign")]
    passes = [one for rows in parts for one in generated(case, rows, e.batch_size, e.max_new_tokens)]
    rows = parts[0] + parts[1]
    size, longest = min(e.batch_size, len(rows)), round(float(rows.prompts.max()))
    peak = memory.cache(s, size, longest + e.max_new_tokens) + memory.forward(s, Sizes(size, longest, 1))
    batches = sum(batches_of(part, e.batch_size) for part in parts)
    return Demand(s.bytes + peak, 2 * batches, 2 * len(rows), passes)


def judge(case: Case) -> Demand:
    """The referee reads each response after its own prompt and two others, as if no two responses were the same; the
    prompts of a batch are read beside them. A judge that is a model of its own is left out."""
    s, size, new = case.shape, case.cfg.referee.batch_size, case.cfg.evaluate.max_new_tokens
    asked = answers_asked(case)
    count = sum(len(rows) * times for rows, times in asked)
    prompts = np.concatenate([rows.prompts for rows, _ in asked])
    rows, prompt, longest = size * (1 + OTHERS), round(float(prompts.mean())), round(float(prompts.max()))
    batches = math.ceil(count / size)
    few = 1 + OTHERS  # prompts of a batch: what is said to one stands together
    passes = [
        work.forward(s, Sizes(few, prompt, 1), batches),
        work.forward(s, Sizes(rows, new, new), batches, past=prompt),
    ]
    peak = memory.cache(s, rows, longest + new) + memory.logits(s, rows, new) + rows * new * s.vocabulary * FLOAT
    return Demand(s.bytes + peak, 2 * batches, few * (batches + count), passes)
