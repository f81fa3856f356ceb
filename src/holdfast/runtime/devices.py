"""Which cards a process sees: none, those of its machine, or those of a pool that it shares with other jobs."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

from holdfast.errors import UserError
from holdfast.runtime import ranks

VISIBLE = "CUDA_VISIBLE_DEVICES"
ASKED = "HOLDFAST_GPUS"  # how many cards the workflow gives a job
_held: list[IO[str]] = []  # the locks on them, which end with the process


def cards() -> list[str]:
    """Those that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    return _asked("uuid")


def card_gib() -> list[float]:
    """The memory of each card of this machine, in GiB; none where `CUDA_VISIBLE_DEVICES` hides all."""
    return [float(mib) / 1024 for mib in _asked("memory.total")] if cards() else []


def _asked(what: str) -> list[str]:
    asked = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else []


def choose(device: str) -> None:
    """Let this process see the cards that `device` and the workflow give it. CUDA reads it when it is first used.

    Raises `UserError` for device=cuda where there is no card.
    """
    if device == "cpu":
        os.environ[VISIBLE] = ""
        return
    there, asked = cards(), int(os.environ.get(ASKED, 0))
    if device == "cuda" and not there:
        raise UserError("device=cuda: there is no card here that nvidia-smi knows; give device=cpu or auto")
    if (place := ranks.place()) is not None and there:
        own, processes = place
        if processes > len(there):
            raise UserError(f"{processes} processes on {len(there)} cards: each needs one; start no more")
        there, asked = (there, 1) if asked else ([there[own]], 0)
        os.environ[VISIBLE] = ",".join(there)
    if 0 < asked < len(there):  # a cluster's scheduler has chosen already
        os.environ[VISIBLE] = ",".join(_taken(there, asked))


def _taken(there: list[str], count: int) -> list[str]:
    """`count` cards that no other job of this user holds, as soon as there are so many."""
    folder = Path(tempfile.gettempdir(), f"holdfast-gpus-{os.getuid()}")
    folder.mkdir(exist_ok=True, mode=0o700)
    while True:
        found: dict[str, IO[str]] = {}
        for card in there:
            lock: IO[str] = (folder / card.replace("/", "-")).open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                continue
            found[card] = lock
            if len(found) == count:
                _held.extend(found.values())
                return list(found)
        for lock in found.values():  # two jobs that each hold a part would wait for each other
            lock.close()
        time.sleep(0.5)
