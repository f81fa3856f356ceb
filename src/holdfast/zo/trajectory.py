"""A refinement is its log: base weights + trajectory = refined weights, bitwise, in any process.

One JSON object a line: a header (hash of the base weights, settings, and each refined tensor's dtype and scale
s), one record a step with the coefficients of its queries, and a seal with the hash of the refined weights.
Numbers that arithmetic depends on are hexadecimal floats. Every line carries a hash that covers all lines before
it, so that an edit anywhere shows. A line is flushed as it is written; what a killed process leaves of its last
line has no newline, and is dropped when the run resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.zo.perturb import Masters

FORMAT = "holdfast trajectory 1"


class TrajectoryError(ValueError):
    """A log that is not what it should be; the message is one line."""


def fingerprint(model: nn.Module) -> str:
    """sha256 over the name, dtype, shape and bytes of every parameter."""
    return _digest(model.named_parameters())


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda named: named[0]):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@dataclass
class Trajectory:
    """A log, read or being written."""

    path: Path
    header: dict[str, Any]
    steps: list[list[float]] = field(default_factory=list)  # coefficients of each step's queries
    losses: list[float] = field(default_factory=list)
    sealed: str | None = None
    chain: str = ""

    @classmethod
    def open(cls, path: Path, base: str, masters: Masters, settings: dict[str, Any]) -> Trajectory:
        """Continue the log at `path`, dropping a torn last line, or begin one.

        Raises `TrajectoryError` if the log there is of another base or of other settings.
        """
        header = {
            "format": FORMAT,
            "base": base,
            "seed": masters.seed,
            "noise": masters.noise,
            "settings": settings,
            "tensors": {
                k: {"dtype": str(p.dtype).removeprefix("torch."), "scale": float(masters.scales[k]).hex()}
                for k, p in masters.tensors.items()
            },
        }
        if path.exists() and (whole := path.read_bytes().rpartition(b"\n")[0]):
            os.truncate(path, len(whole) + 1)
            found = cls.read(path)
            for key, value in header.items():
                if found.header.get(key) != value:
                    raise TrajectoryError(f"{path}: of another refinement (its {key} differs); move it away")
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        begun = cls(path, header)
        begun._write(header)
        return begun

    @classmethod
    def read(cls, path: Path) -> Trajectory:
        """Raises `TrajectoryError` on an edited log; one that ends early is read as far as it goes."""
        lines = path.read_text(encoding="utf-8").splitlines()
        found = cls(path, {})
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                chain = record.pop("chain")
            except (ValueError, KeyError, AttributeError):
                raise TrajectoryError(f"{path}: line {number} is no record of a trajectory") from None
            if chain != found._next_chain(record):
                raise TrajectoryError(f"{path}: line {number} is not what was written; the log has been edited")
            found.chain = chain
            found._take(record, number)
        if found.header.get("format") != FORMAT:
            raise TrajectoryError(f"{path}: not a log of this format ({FORMAT})")
        return found

    def _take(self, record: dict[str, Any], number: int) -> None:
        if number == 1:
            self.header = record
        elif "step" in record and record["step"] == len(self.steps) and self.sealed is None:
            self.steps.append([float.fromhex(c) for c in record["coefficients"]])
            self.losses.append(record["loss"])
        elif "sealed" in record and record["steps"] == len(self.steps):
            self.sealed = record["sealed"]
        else:
            raise TrajectoryError(f"{self.path}: line {number} is out of order")

    def _next_chain(self, record: dict[str, Any]) -> str:
        return hashlib.sha256(f"{self.chain}{json.dumps(record, sort_keys=True)}".encode()).hexdigest()[:16]

    def _write(self, record: dict[str, Any]) -> None:
        self.chain = self._next_chain(record)
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record | {"chain": self.chain}, sort_keys=True) + "\n")
            log.flush()

    def append(self, coefficients: list[float], loss: float) -> None:
        if self.sealed is not None:
            raise TrajectoryError(f"{self.path}: is sealed after step {len(self.steps)}; a longer run needs a new log")
        self._write({"step": len(self.steps), "coefficients": [c.hex() for c in coefficients], "loss": loss})
        self.steps.append(coefficients)
        self.losses.append(loss)

    def seal(self, masters: Masters) -> None:
        """Close the log, unless it is closed already."""
        if self.sealed is None:
            self.sealed = _digest(masters.tensors.items())
            self._write({"sealed": self.sealed, "steps": len(self.steps)})

    def replay_into(self, masters: Masters) -> int:
        """Repeat every step; gives their number."""
        for step, coefficients in enumerate(self.steps):
            masters.move(coefficients, step=step)
        return len(self.steps)


def replay(model: nn.Module, path: Path) -> int:
    """Turn the base model into the refined one, in place, and check the result against the seal.

    Gives the number of steps. Raises `TrajectoryError` for a wrong base, an edited log, or one that ends early.
    """
    log = Trajectory.read(path)
    if log.sealed is None:
        raise TrajectoryError(f"{path}: ends early, after step {len(log.steps)}; resume the refinement to complete it")
    if fingerprint(model) != log.header["base"]:
        raise TrajectoryError(f"{path}: made from other base weights than these")
    named = dict(model.named_parameters())
    scales = {name: float.fromhex(t["scale"]) for name, t in log.header["tensors"].items()}
    masters = Masters({k: named[k] for k in scales}, seed=log.header["seed"], noise=log.header["noise"], scales=scales)
    log.replay_into(masters)
    if _digest(masters.tensors.items()) != log.sealed:
        raise TrajectoryError(f"{path}: the replayed weights are not the refined ones")
    return len(log.steps)
