"""What a Snakemake that was killed leaves behind: its lock of the folder, which it would ask a person to remove."""

from __future__ import annotations

import fcntl
import socket
import sys
from pathlib import Path
from typing import IO

ALIVE = "holdfast-alive"
_held: list[IO[str]] = []  # until this process ends, however it ends


def take_over(folder: Path) -> None:
    """Remove Snakemake's locks in `folder` (.snakemake) if the process that made them is gone.

    That is known where it held a file that can be held now, and ran on this host: a lock may not reach another one's.
    """
    folder.mkdir(exist_ok=True)
    alive: IO[str] = (folder / ALIVE).open("a+", encoding="utf-8")
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by another, or this file system has no such locks: Snakemake says what is locked
        alive.close()
        return
    _held.append(alive)
    alive.seek(0)
    here, left = socket.gethostname(), list((folder / "locks").glob("*.lock"))
    if left and alive.read() != here:
        return
    if left:
        for path in left:
            path.unlink(missing_ok=True)
        print("a run in this folder was killed; this one goes on from what it wrote", file=sys.stderr)
    alive.truncate(0)
    alive.write(here)
    alive.flush()
