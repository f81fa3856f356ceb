"""A control for descent: the same noise and the same lengths of steps, with random signs."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from holdfast.zo.noise import COIN, Stream, words
from holdfast.zo.perturb import Moves
from holdfast.zo.replaying import masters_of, sealed_log
from holdfast.zo.trajectory import Trajectory, TrajectoryError


def sign_shuffled(model: nn.Module, source: Path, *, seed: int, trajectory: Path) -> int:
    """Repeat the refinement logged at `source` on its base model, in place, with the sign of every coefficient
    redrawn: a pure function of (seed, step, query). Gives the number of queries.

    `trajectory` becomes a sealed log of its own, which `replay` takes; one that a killed walk left is completed.
    Its context is the source's, and names the seed of the coins and the seal of the source. Raises
    `TrajectoryError` where `replay` does, for a subspace log, and for another walk's log at `trajectory`.
    """
    walked = sealed_log(source, model)
    if walked.header["kind"] not in ("weights", "low_rank"):
        raise TrajectoryError(f"{source}: a refinement within a subspace; its signs cannot be shuffled")
    masters = masters_of(walked, model)
    settings = dict(walked.header["settings"])
    settings["context"] = settings["context"] | {"sign_shuffled": {"seed": seed, "source": walked.sealed}}
    log = Trajectory.open(trajectory, walked.header["base"], masters, settings)
    for step in range(log.replay_into(masters), len(walked.steps)):
        coefficients = _shuffled(walked.steps[step], masters, seed, step)
        masters.move(coefficients, step=step)
        log.append(coefficients)
    log.seal(masters)
    return sum(map(len, log.steps))


def _shuffled(coefficients: list[float], masters: Moves, seed: int, step: int) -> list[float]:
    queries = range(len(coefficients))
    coins = words(COIN, Stream(masters.draws.noise, seed, step), tensors=[0], queries=queries)[:, 0].tolist()
    return [math.copysign(c, 1 - 2 * (coin & 1)) for c, coin in zip(coefficients, coins, strict=True)]
