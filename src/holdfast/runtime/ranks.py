"""A stage as several processes, as `torchrun` starts them: they share the work, and rank 0 alone writes and speaks."""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from holdfast.errors import UserError
from holdfast.runtime.failures import said

T = TypeVar("T")
LOST = re.compile("gloo|Connection")  # what torch says where the other end of a group is gone
SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed ZeRO"}


def launched() -> tuple[int, int]:
    """The rank that torchrun gave this process, and of how many; (0, 1) where it did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def first() -> bool:
    """Whether this process is the one that writes."""
    return launched()[0] == 0


def refuse(stage: str, shares: bool) -> None:
    """Raise `UserError` for several processes of a stage that does not share its work, and for weights in shards."""
    size = launched()[1]
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UserError(f"{variable}: {name} keeps weights in shards, and noise needs whole ones; start torchrun")
    if size > 1 and not shares:
        raise UserError(f"{stage} is one process, and torchrun started {size}; probe, refine and evaluate share work")


def own_folder() -> list[str]:
    """The override by which a process that does not write works in a folder of its own, which goes with it."""
    if first():
        return []
    folder = tempfile.mkdtemp(prefix="holdfast-rank-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [f"hydra.run.dir={folder}"]


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The processes as one group, which sends numbers by gloo. What others than rank 0 would say goes nowhere, but for
    an error of their own.

    Raises `UserError` in rank 0 where another process ends before it.
    """
    rank, size = launched()
    if size == 1:
        yield
        return
    import torch.distributed as dist

    signal.signal(signal.SIGTERM, _stopped)
    dist.init_process_group("gloo", timeout=timedelta(days=1))
    try:
        with contextlib.redirect_stderr(_Nowhere()) if rank else contextlib.nullcontext():
            yield
            dist.barrier()
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself
        gone = isinstance(error, _Stopped) or (isinstance(error, RuntimeError) and LOST.search(str(error)))
        if rank == 0:
            if not gone:
                raise
            raise UserError(f"one of {size} processes has ended; call it again, and it goes on") from None
        sys.exit(1 if gone else f"rank {rank}: {said(error)}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    dist.destroy_process_group()


class _Stopped(Exception):
    """By torchrun, which stops all processes where one has failed."""


def _stopped(*_: object) -> None:
    raise _Stopped


class _Nowhere(io.StringIO):
    def write(self, text: str) -> int:
        return len(text)


def from_first(value: Callable[[], T]) -> T:
    """What `value` gives in rank 0, in every rank."""
    if launched()[1] == 1:
        return value()
    import torch.distributed as dist

    sent: list[Any] = [value() if first() else None]
    dist.broadcast_object_list(sent, src=0)
    return sent[0]


def same_file(path: Path) -> None:
    """Give the other ranks, whose folders are their own, what rank 0 has at that place of its folder."""
    content = from_first(lambda: path.read_bytes() if path.is_file() else None)
    if content is not None and not first():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def place() -> tuple[int, int] | None:
    """Which of this machine's processes this one is, and of how many; None where there is one alone."""
    if launched()[1] == 1:
        return None
    return int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])


def torchrun(processes: int, *words: str) -> int:
    """`holdfast <words>` as so many processes of this machine, which share its threads; its exit status."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    threads = int(os.environ.get("OMP_NUM_THREADS") or processes)
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // processes))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what failed has said why
    try:
        main(["--standalone", f"--nproc-per-node={processes}", "-m", "holdfast", *words])
    except ChildFailedError as error:
        return max(1, *(failure.exitcode for failure in error.failures.values()))
    return 0
