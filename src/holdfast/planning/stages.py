"""What alignment and probe take: their memory at the worst moment, forwards, and what is computed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from holdfast.methods.method import PASS
from holdfast.planning import memory, work
from holdfast.planning.demand import Case, Demand
from holdfast.planning.memory import FLOAT
from holdfast.planning.refinement import Moved, reference_batches, two_point
from holdfast.recipes.gradient import DPO
from holdfast.recipes.zeroth_order import ZerothOrderAlignment


def align(case: Case) -> Demand:
    """See `holdfast.recipes`: all weights train, in float32 with their gradients and AdamW's moments, and on a GPU
    with a copy in half precision where they came so; or an adapter does, beside a copy of the weights in main memory.
    A model that comes aligned takes nothing."""
    a, s, texts = case.cfg.align, case.shape, case.texts
    if not a.trains:
        return Demand(0.0, 0, 0, [])
    if isinstance(a, ZerothOrderAlignment):
        return two_point(case, a, "nll", a.steps, Moved(s.matrices, len(s.layers)))
    usual, worst = (texts.padded(_loss(a), a.batch_size, n * a.batch_size).cut(a.max_length) for n in (1, a.steps))
    weights = FLOAT * s.parameters
    moments = weights * (a.optimizer_args is not None if getattr(a, "optimizer", "") == "sgd" else 2)
    step = weights + (weights if case.cuda else 2 * FLOAT * s.largest)  # gradients; temporaries of the update
    cast = s.bytes if case.cuda and s.width < FLOAT else 0
    run = s if cast else replace(s, width=FLOAT)
    peak = weights + moments + max(cast + memory.trainer_backward(run, worst, case.cuda), step)
    if a.lora:
        peak = adapter(case, a.lora.rank)
    passes = [*work.backward(s, usual, a.steps), work.copying(4 * weights + 3 * moments, a.steps)]
    if not case.cuda:  # the tiles of the head, of which every operation is a pass of its own
        passes.append(work.copying(2 * memory.TILE_COPIES * FLOAT * s.vocabulary * usual.size, a.steps))
    forwards, sequences = PASS * a.steps, PASS * a.steps * usual.rows
    if isinstance(a, DPO):
        batches = reference_batches(case, a)
        passes.append(work.forward(s, usual, batches))
        forwards, sequences = forwards + batches, sequences + batches * usual.rows
    return Demand(peak, forwards, sequences, passes)


def adapter(case: Case, rank: int) -> float:
    """Bytes of an alignment by LoRA; on a CPU the copy that the merge is checked against lies in the same memory."""
    a, s = case.cfg.align, case.shape
    worst = case.texts.padded(_loss(a), a.batch_size, a.batch_size * a.steps).cut(a.max_length)
    running = memory.trainer_backward(s, worst, case.cuda, full=False) + memory.adapted(s, worst, rank)
    return s.bytes * (1 if case.cuda else 2) + running


def _loss(align: Any) -> str:
    """Of ours, the one whose sequences are those of the recipe."""
    return "dpo" if isinstance(align, DPO) else "nll"


def probe(case: Case) -> Demand:
    """See `holdfast.probing.probe`."""
    p, s = case.cfg.probe, case.shape
    batch = case.texts.packed(p.loss, p.batch_size, p.prompts)
    online = case.texts.packed(p.loss, p.online.batch_size, p.online.batch_size * max(1, p.online.steps))
    chunks, depth, sigmas = math.ceil(p.prompts / p.batch_size), len(s.layers), 1 + len(p.other_sigmas)
    upper = (depth + 1) / 2  # forwards in which every decoder layer is the lowest that runs, once
    whole = len(s.groups) > depth  # the embeddings are perturbed too
    full = sigmas * (2 + 2 * p.draws * whole) * chunks
    full += ("together" in p.compare) * sigmas * (1 + 2 * p.draws) * chunks
    full += ("activations" in p.compare) * (1 + 2 * p.draws * depth) * chunks
    full += ("quantization" in p.compare) * (1 + depth) * chunks
    layered = 2 * sigmas * p.draws * chunks
    steps = p.online.steps * (2 * p.online.queries + 1)
    passes = [
        work.forward(s, batch, full),
        work.forward(s, batch, layered * depth, share=upper / depth),
        work.forward(s, online, steps),
        work.copying((FLOAT + s.width) * sum(s.groups), layered + 2 * sigmas * chunks),
        work.copying((FLOAT + s.width) * s.matrices / 2, steps),
    ]
    masters = FLOAT * (s.matrices if "together" in p.compare else max(s.groups))
    alone = masters + depth * memory.states(s, batch) + memory.forward(s, batch)
    refining = FLOAT * s.matrices + (0 if case.cuda else s.width * s.matrices) + memory.forward(s, online)
    forwards = full + layered * upper + steps
    sequences = case.texts.copies(p.loss) * ((forwards - steps) * batch.rows + steps * online.rows)
    return Demand(s.bytes + max(alone, refining if steps else 0), forwards, sequences, passes)
