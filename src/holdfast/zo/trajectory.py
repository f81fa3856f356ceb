"""A refinement is its log: base weights + trajectory = refined weights, bitwise, in any process.

One JSON object a line: a header (hash of the base weights, settings, and what `Moves.header` tells, such as each
refined tensor's dtype and scale s), one record a step with the coefficients of its queries, and a seal with the
hash of the refined weights. Numbers that arithmetic depends on are hexadecimal floats. Every line carries a hash
that covers all lines before it, so that an edit anywhere shows. A line is flushed as it is written; what a killed
process leaves of its last line has no newline, and is dropped when the run resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.zo.digest import digest
from holdfast.zo.directions import Direction, Factors, flat
from holdfast.zo.perturb import Moves

FORMAT = "holdfast trajectory 1"
DIRECTIONS = "directions.safetensors"
BEGIN_ANEW = "move it away to begin anew"
DTYPES = ("float64", "float32", "bfloat16", "float16")
EARLIER = {"kind": "weights", "subset": (1.0).hex()}  # what headers did not say before there was a choice


class TrajectoryError(ValueError):
    """A log that was edited, ends early, or is of another model or run; the message is one line."""


@dataclass
class Trajectory:
    """A log, read or being written."""

    path: Path
    header: dict[str, Any]
    steps: list[list[float]] = field(default_factory=list)  # coefficients of each step's queries
    losses: list[float] = field(default_factory=list)  # one a step; none of a walk that evaluates nothing
    seen: list[float] = field(default_factory=list)  # the rms of its projected gradients, where later steps need it
    sealed: str | None = None
    chain: str = ""

    @classmethod
    def open(cls, path: Path, base: str, masters: Moves, settings: dict[str, Any]) -> Trajectory:
        """Continue the log at `path`, dropping a torn last line, or begin one.

        Raises `TrajectoryError` if the log there is of another base or of other settings, or no log.
        """
        header = {"format": FORMAT, "base": base, "settings": settings} | masters.header()
        if whole := _whole_lines(path):
            os.truncate(path, len(whole))
            found = cls._parsed(path, whole)
            for key in header | found.header:
                if found.header.get(key) != header.get(key):
                    raise TrajectoryError(f"{path}: of another refinement (its {key} differs); {BEGIN_ANEW}")
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a header at most, that a killed process did not write to its end
        begun = cls(path, header)
        begun._write(header)
        return begun

    @classmethod
    def read(cls, path: Path) -> Trajectory:
        """Raises `TrajectoryError` on an edited log; one that ends early is read as far as it goes."""
        return cls._parsed(path, path.read_bytes())

    @classmethod
    def _parsed(cls, path: Path, text: bytes) -> Trajectory:
        found = cls(path, {})
        for number, line in enumerate(text.decode(errors="replace").splitlines(), 1):
            try:
                record = json.loads(line)
                chain = record.pop("chain")
                if chain != found._next_chain(record):
                    raise TrajectoryError(f"{path}: line {number} is not what was written; the log has been edited")
                found.chain = chain
                found._take(record, number)
            except TrajectoryError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise TrajectoryError(f"{path}: line {number} is no record of a trajectory") from None
        if found.header.get("format") != FORMAT:
            raise TrajectoryError(f"{path}: not a log of this format ({FORMAT})")
        return found

    def _take(self, record: dict[str, Any], number: int) -> None:
        if number == 1:
            self.header = EARLIER | record
            _check_tensors(record["tensors"])
        elif "step" in record and record["step"] == len(self.steps) and self.sealed is None:
            self.steps.append([float.fromhex(c) for c in record["coefficients"]])
            self.losses += [record["loss"]] if "loss" in record else []
            self.seen += [float.fromhex(record["rms"])] if "rms" in record else []
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

    def append(self, coefficients: list[float], loss: float | None = None, rms: float | None = None) -> None:
        if self.sealed is not None:
            raise TrajectoryError(f"{self.path}: is sealed after step {len(self.steps)}; a longer run needs a new log")
        told: dict[str, Any] = {"loss": loss} if loss is not None else {}
        told |= {"rms": rms.hex()} if rms is not None else {}
        self._write({"step": len(self.steps), "coefficients": [c.hex() for c in coefficients]} | told)
        self.steps.append(coefficients)
        self.losses += [] if loss is None else [loss]
        self.seen += [] if rms is None else [rms]

    def seal(self, masters: Moves) -> None:
        """Close the log, unless it is closed already."""
        if self.sealed is None:
            self.sealed = digest(masters.tensors.items())
            self._write({"sealed": self.sealed, "steps": len(self.steps)})

    def replay_into(self, masters: Moves) -> int:
        """Repeat every step; gives their number."""
        for step, coefficients in enumerate(self.steps):
            masters.move(coefficients, step=step)
        return len(self.steps)


def _check_tensors(tensors: Mapping[str, Mapping[str, str]]) -> None:
    """Raise one of the errors by which a line is no record, unless a header may name these."""
    if not tensors or any(tensor["dtype"] not in DTYPES for tensor in tensors.values()):
        raise ValueError
    for tensor in tensors.values():
        float.fromhex(tensor["scale"])


def logged_scales(path: Path, names: Iterable[str]) -> dict[str, float] | None:
    """The scales of these tensors as the log at `path` has them, for a run that resumes it; None where it has others,
    or none. Raises `TrajectoryError` for a file that is no log or has been edited.

    A new reduction need not have their bits: its order depends on the number of threads.
    """
    whole = _whole_lines(path)
    if not whole:
        return None
    tensors = Trajectory._parsed(path, whole).header["tensors"]
    return {k: float.fromhex(tensors[k]["scale"]) for k in names} if tensors.keys() == set(names) else None


def _whole_lines(path: Path) -> bytes:
    """Those of a log that is there, without what a killed process left of a last one. Raises `TrajectoryError` for a
    file of one unfinished line that cannot be a header's beginning: it is someone else's."""
    found = path.read_bytes() if path.exists() else b""
    whole, newline, rest = found.rpartition(b"\n")
    if not whole and not b'{"'.startswith(rest[:2]):
        raise TrajectoryError(f"{path}: not a log of a refinement; {BEGIN_ANEW}")
    return whole + newline


def write_directions(path: Path, directions: Mapping[str, Direction]) -> None:
    """Beside the log at `path`: rank-one directions. A replay needs them as they were, and their last bits depend on
    the machine that decomposed."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{DIRECTIONS}.tmp")
    save_file({name: tensor.cpu().contiguous() for name, tensor in flat(directions).items()}, temporary)
    os.replace(temporary, path.with_name(DIRECTIONS))


def read_directions(path: Path) -> dict[str, Direction]:
    """What `write_directions` wrote beside the log at `path`. Raises `TrajectoryError` where there is no such file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path.with_name(DIRECTIONS))
    except (OSError, SafetensorError) as error:
        raise TrajectoryError(f"{path}: its directions, {DIRECTIONS}, cannot be read ({error})") from None
    names = [name.removesuffix(".left") for name in found if name.endswith(".left")]
    return {name: Factors(found[f"{name}.left"], found[f"{name}.right"]) for name in names}
