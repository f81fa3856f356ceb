"""The refined weights made again from base weights and a log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from holdfast.zo.digest import digest, fingerprint
from holdfast.zo.directions import Direction, Span, alignment_directions
from holdfast.zo.low_rank import LowRank
from holdfast.zo.perturb import Masters, Moves
from holdfast.zo.trajectory import DIRECTIONS, Trajectory, TrajectoryError, read_directions


def replay(model: nn.Module, path: Path, origin: nn.Module | None = None) -> int:
    """Turn the base model into the refined one, in place, and check the result against the seal.

    `origin`, the model before alignment, is needed by a log of a refinement within the alignment subspace. Gives
    the number of steps. Raises `TrajectoryError` for a wrong base or origin, an edited log, or one that ends early.
    """
    log = sealed_log(path, model)
    masters = masters_of(log, model, origin)
    log.replay_into(masters)
    if digest(masters.tensors.items()) != log.sealed:
        raise TrajectoryError(f"{path}: the replayed weights are not the refined ones")
    return len(log.steps)


def sealed_log(path: Path, model: nn.Module) -> Trajectory:
    """A complete log of this base model; else `TrajectoryError`."""
    log = Trajectory.read(path)
    if log.sealed is None:
        raise TrajectoryError(f"{path}: ends early, after step {len(log.steps)}; resume the refinement to complete it")
    if fingerprint(model) != log.header["base"]:
        raise TrajectoryError(f"{path}: made from other base weights than these")
    return log


def masters_of(log: Trajectory, model: nn.Module, origin: nn.Module | None = None) -> Moves:
    """The masters that the log's header describes, on its base model. Raises `TrajectoryError` for a wrong origin, and
    for a header that describes none of this model."""
    try:
        return _described(log, model, origin)
    except TrajectoryError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrajectoryError(
            f"{log.path}: its header does not fit this model ({' '.join(str(error).split())})"
        ) from None


def _described(log: Trajectory, model: nn.Module, origin: nn.Module | None) -> Moves:
    header, named = log.header, dict(model.named_parameters())
    scales = {name: float.fromhex(t["scale"]) for name, t in header["tensors"].items()}
    tensors = {k: named[k] for k in scales}
    drawn = {"seed": header["seed"], "noise": header["noise"], "scales": scales}
    subset = float.fromhex(header["subset"])
    if header["kind"] == "weights":
        return Masters(tensors, subset=subset, **drawn)
    if header["kind"] == "low_rank":
        return LowRank(tensors, rank=header["rank"], subset=subset, **drawn)
    kept = header["kind"] == "singular"
    try:
        directions = read_directions(log.path) if kept else _of_origin(log, model, origin, scales)
        start = float.fromhex(header.get("start", "0"))
        masters = Span(tensors, directions, tie=header["tie"], start=start, **drawn)
    except KeyError as error:
        raise TrajectoryError(f"{log.path}: {DIRECTIONS} has none of {error}") from None
    if masters.header()["directions"] != header["directions"]:
        other = f"others than {DIRECTIONS} holds" if kept else "directions from another origin than this model"
        raise TrajectoryError(f"{log.path}: made with {other}")
    return masters


def _of_origin(
    log: Trajectory, model: nn.Module, origin: nn.Module | None, names: Iterable[str]
) -> Mapping[str, Direction]:
    if origin is None:
        raise TrajectoryError(
            f"{log.path}: a refinement within a subspace; `origin`, the model before alignment, is needed"
        )
    try:
        return alignment_directions(model, origin, names)
    except ValueError as error:
        raise TrajectoryError(f"{log.path}: {error}") from None
