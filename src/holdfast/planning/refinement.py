"""What refinement takes: its memory at the worst moment, forwards, and what is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from holdfast.methods.controls import Extrapolate, SignShuffled
from holdfast.methods.coordinates import Subspace
from holdfast.methods.first_order import NoiseStability
from holdfast.methods.line_search import LineSearch
from holdfast.methods.low_rank import LowRankLineSearch
from holdfast.methods.method import PASS
from holdfast.methods.zeroth_order import LowRankTwoPoint, TwoPoint
from holdfast.planning import memory, work
from holdfast.planning.demand import Case, Demand
from holdfast.planning.memory import FLOAT, Sizes
from holdfast.planning.shape import Shape
from holdfast.recipes.zeroth_order import ZerothOrderAlignment

SCRATCH = 2**26  # bytes in which the subspace places its tensors, and noise its own
ROUNDED = 6  # times a matrix is read and written as it is rounded


def refine(case: Case) -> Demand:
    """See `holdfast.methods`, one case a kind."""
    r, m, s = case.cfg.refine, case.cfg.method, case.shape
    budget = m.budget(r)
    worst = case.texts.packed(r.loss, r.batch_size, r.batch_size * r.steps)
    some, everything = m.select.rule.endswith("_k"), m.select.rule == "everything"
    chosen = s.chosen(m.select.k) if some else sum(s.groups) if everything else s.matrices
    if m.select.parameters != "matrices":
        chosen = s.vectors[m.select.parameters] * (m.select.k if some else len(s.layers)) // len(s.layers)
    if m.passes:
        found = _gradients(case, worst, chosen, max(1, budget // m.passes))
    elif isinstance(m, TwoPoint):
        found = two_point(case, m, r.loss, max(1, budget // (2 * m.queries)), _moved(m, chosen, s))
    else:
        found = _without_loss(case, worst, budget)
    if r.loss != "dpo":
        return found
    reference = reference_batches(case, r)
    passes = [*found.passes, work.forward(s, worst, reference)]
    return Demand(found.memory, found.forwards + reference, found.sequences + reference * 2 * worst.rows, passes)


@dataclass(frozen=True)
class Moved:
    """How many elements a two-point refinement moves, in how many layers: all of them, or some below which others may
    be reused. What is not `weights` moves from an anchor, along so many directions of rank one, or along whole ones
    (0)."""

    elements: int
    layers: int
    kind: Literal["weights", "subspace", "adapters"] = "weights"
    rank: int = 0


def _moved(m: TwoPoint, chosen: int, s: Shape) -> Moved:
    if isinstance(m, Subspace):
        return Moved(chosen, len(s.layers), "subspace", m.rank or 0)
    layers = m.select.k if m.select.rule.endswith("_k") else len(s.layers)
    return Moved(chosen, layers, "adapters", m.rank) if isinstance(m, LowRankTwoPoint) else Moved(chosen, layers)


def two_point(case: Case, settings: Any, loss: str, steps: int, moved: Moved) -> Demand:
    """Float32 masters of what moves; of a subspace directions in their place, anchors and scratch, and once the model
    before alignment. Which layers a probe will choose is not known: what lies below them is as if they were drawn."""
    s, queries = case.shape, settings.queries
    size = getattr(settings, "batch_size", case.cfg.refine.batch_size)  # a method's is the common one
    rows = case.texts.train if isinstance(settings, ZerothOrderAlignment) else case.texts.taught
    usual, worst = (case.texts.packed(loss, size, draws, rows) for draws in (size, size * steps))
    depth = len(s.layers)
    below = (depth + 1) / (moved.layers + 1) - 1  # the mean of the lowest of so many layers
    reused = memory.states(s, worst) if moved.layers < depth else 0
    beside: float = FLOAT * moved.elements
    origin, write = 0.0, moved.elements * (FLOAT + s.width)
    if moved.kind != "weights":
        room = max(FLOAT * s.matrix, SCRATCH)
        # A whole Δ, or beside the scratch a product of factors; and the factors, adapters with their masters.
        beside = (room if moved.rank else FLOAT * moved.elements) + s.width * moved.elements + room
        within = moved.kind == "subspace"
        beside += FLOAT * (1 if within else 2) * moved.rank * (s.inputs + s.outputs) * moved.layers / depth
        origin = s.bytes if within else 0.0
        write = moved.elements * ((5 if moved.rank == 0 else 6 * moved.rank) * FLOAT + 2 * s.width)
    under = _deployed(s, settings, moved.elements)
    peak = s.bytes + beside + under.kept + max(memory.forward(s, worst) + reused, origin)
    passes = [
        work.forward(s, usual, steps),
        work.forward(s, usual, steps * (2 * queries - 1), share=1 - below / depth),
        work.copying(write + under.written, 2 * queries * steps),
        work.copying(moved.elements * (2 * FLOAT + s.width + FLOAT * queries), steps),
    ]
    forwards = 2 * queries * steps
    return Demand(peak, forwards, forwards * usual.rows * case.texts.copies(loss), passes)


@dataclass(frozen=True)
class Under:
    """Bytes that `holdfast.zo.Deployed` keeps and uses beside the model, and what each of its writes reads and
    writes."""

    kept: float = 0
    written: float = 0


def _deployed(s: Shape, settings: Any, moved: int) -> Under:
    """Of the deployment in a method's settings: a copy of what does not move, and float32 values of some tensors or
    the temporaries of one that is rounded."""
    rounding = getattr(settings, "rounding", None)
    if not rounding and not getattr(settings, "sigma", 0):
        return Under()
    room = ROUNDED * FLOAT * s.matrix if rounding else 0 if s.width == FLOAT else max(FLOAT * s.matrix, SCRATCH)
    passes = ROUNDED if rounding else 2
    return Under(s.width * max(0, s.matrices - moved) + room, passes * (FLOAT + s.width) * s.matrices)


def _gradients(case: Case, worst: Sizes, chosen: int, steps: int) -> Demand:
    """Masters, gradients and AdamW's moments of what moves, and what a method keeps beside them: see
    `holdfast.methods.first_order`."""
    r, s, m = case.cfg.refine, case.shape, case.cfg.method
    usual = case.texts.packed(r.loss, r.batch_size, r.batch_size)
    low = isinstance(m, LowRankLineSearch)  # of which adapters alone have gradients and moments
    kept = memory.adapted(s, worst, m.rank) + FLOAT * chosen if low else FLOAT * chosen * max(m.moved - 1, 0)
    summed = 0 if low else FLOAT * chosen  # gradients; in half precision those of the backward stand beside them
    running = memory.backward(s, worst, len(s.layers)) + (summed if isinstance(m, NoiseStability) else 0)
    update = summed + max(s.width * chosen if s.width < FLOAT and not low else 0, 2 * FLOAT * s.largest)
    under = _deployed(s, m, chosen)
    peak = s.bytes + kept + under.kept + max(running, update)
    times = steps * m.passes // PASS
    write = (FLOAT + s.width) * chosen + under.written
    tried = _tried(case, m) if isinstance(m, LineSearch) else 0
    passes = [*work.backward(s, usual, times), work.copying((0 if low else 7 * FLOAT * chosen) + write, times)]
    passes.append(work.forward(s, usual, tried))
    forwards = PASS * times + tried
    return Demand(peak, forwards, forwards * usual.rows * case.texts.copies(r.loss), passes)


def _tried(case: Case, m: LineSearch) -> int:
    """Forwards of a batch by which a strength is chosen, if the model answers all that it is asked."""
    examples = 2 * case.cfg.elicit.prompts or len(case.texts.train)
    batches = math.ceil(m.set_aside * examples / case.cfg.refine.batch_size)
    return (1 + len(m.strengths)) * (2 * m.draws + 1) * batches


def _without_loss(case: Case, worst: Sizes, budget: int) -> Demand:
    """Controls that ask no loss, or only for the states of benign prompts."""
    r, s, m = case.cfg.refine, case.shape, case.cfg.method
    walk = [work.copying(s.matrices * (2 * FLOAT + s.width + FLOAT * r.queries), r.steps)]
    if isinstance(m, SignShuffled):
        return Demand(s.bytes + FLOAT * s.matrices, budget, budget * worst.rows * case.texts.copies(r.loss), walk)
    if isinstance(m, Extrapolate):
        return Demand(2 * s.bytes + 3 * FLOAT * s.largest, 0, 0, [work.copying(3 * s.bytes)])
    batch, times = replace(worst, rows=r.batch_size, columns=0), math.ceil(len(case.texts.train) / 2 / r.batch_size)
    passes = [work.forward(s, batch, times)]
    return Demand(s.bytes + memory.forward(s, batch), times, times * worst.rows * case.texts.copies(r.loss), passes)


def reference_batches(case: Case, settings: Any) -> int:
    """Batches in which the reference of DPO reads the training rows: as many as training meets, where they are not
    known."""
    return math.ceil(len(case.texts.train) / settings.batch_size) if case.texts.made else settings.steps
