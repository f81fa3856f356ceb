"""Memory: freed blocks are kept for reuse, and work that runs out of memory is done again in smaller parts."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from holdfast.errors import UserError

T = TypeVar("T")
WORDS = ("out of memory", "not enough memory", "can't allocate memory")  # of CUDA, and of torch's allocator on a CPU

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h of glibc has them


def keep_freed() -> None:
    """Let the process keep up to 512 MiB of freed blocks of up to 32 MiB, the most that glibc takes.

    By itself glibc gives a large tensor's pages back when it is freed, and the kernel has to clear new ones for the
    next tensor of the same size.
    """
    _glibc("mallopt", M_MMAP_THRESHOLD, 32 * 2**20)
    _glibc("mallopt", M_TRIM_THRESHOLD, 512 * 2**20)


def release_freed() -> None:
    """Give back what `keep_freed` kept, so that the memory in use is what is used."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    """Does nothing with another C library."""
    call = getattr(ctypes.CDLL(None), function, None)
    if call:
        call(*arguments)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; torch's own kinds are all `RuntimeError`."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)
    )


class Parts:
    """Cuts batches, which have a length and can be sliced, into parts of at most `rows` rows. Whenever memory runs
    out, `rows` is halved for good, and a line says so. `key` names the setting that a user may lower."""

    def __init__(self, key: str, rows: int | None = None) -> None:
        self.key, self.rows = key, rows

    def of(self, batch: Any) -> list[Any]:
        size = self.rows or max(len(batch), 1)
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def whole(self, batches: Sequence[Any], work: Callable[..., T]) -> T:
        """`work(*parts)` on those of all batches, begun anew with smaller ones until it fits: work that leaves nothing
        behind when it fails."""
        while True:
            done = self._tried(work, *(part for batch in batches for part in self.of(batch)))
            if done:
                return done[0]

    def each(self, batch: Any, work: Callable[[Any], object]) -> None:
        """`work(part)` for one part after another; of a part that does not fit, for its halves."""
        waiting = self.of(batch)
        while waiting:
            part, *waiting = waiting
            if not self._tried(work, part):
                waiting = [*self.of(part), *waiting]

    def flow(self, items: Sequence[T], work: Callable[[list[T], int], Iterable[T]]) -> None:
        """`work(items, rows)` gives items as they are done, `rows` of them at once; of those that memory did not
        suffice for, again with fewer."""
        left = list(items)

        def some(rows: range) -> None:
            for one in work(list(left), len(rows)):
                left.remove(one)

        while left:
            self._tried(some, range(min(self.rows or len(left), len(left))))

    def _tried(self, work: Callable[..., T], *parts: Any) -> tuple[T] | None:
        """The result alone in a tuple; None where memory ran out, and parts shall be smaller.

        Raises `UserError` if a single row does not fit.
        """
        largest = max(map(len, parts))
        try:
            return (work(*parts),)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if largest == 1:
                raise UserError(
                    f"memory ran out with one row at a time; {self.key} cannot be lowered further"
                ) from None
        self._shrunk(largest)  # only here is the failed work's memory free: the exception held its frames
        return None

    def _shrunk(self, largest: int) -> None:
        self.rows = largest // 2
        print(f"memory ran out with {largest} rows at once; going on with {self.rows} ({self.key})", file=sys.stderr)
        gc.collect()
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_available():
            torch.cuda.empty_cache()


class peak_memory:
    """Context manager: afterwards `mib` is how much more memory than before was in use at the worst moment, on the GPU
    if there is one; NaN where the system does not tell."""

    mib = float("nan")

    def __enter__(self) -> peak_memory:
        import torch

        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        elif Path("/proc/self/clear_refs").exists():
            release_freed()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            import torch

            self.mib = torch.cuda.max_memory_allocated() / 2**20 - self.before
        elif hasattr(self, "before"):
            self.mib = _status("VmHWM") - self.before


def _status(key: str) -> float:
    """A figure of this process, in MiB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024
