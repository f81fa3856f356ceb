"""Several processes, one refinement: ranks share numbers of their losses, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


def ranks() -> tuple[int, int]:
    """This process's rank in the default process group, and how many there are; (0, 1) without a group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def summed_over_ranks(sums: Tensor) -> Tensor:
    """float64 sums of any shape, added over the ranks of the default process group in the order of the ranks.

    One collective of a few bytes (gloo or NCCL). Every rank adds the same numbers in the same order, so all
    get the same bits; a single process with the same global batch adds them in another order, which float64
    shows in the last digit at most.
    """
    parts = _gathered(sums)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def dealt_back(rows: Tensor, count: int) -> Tensor:
    """(count, …): all rows, in order, of which this rank brings every size-th one from its own on, (mine, …)."""
    _, size = ranks()
    most = -(-count // size)
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    return torch.stack(_gathered(padded), dim=1).flatten(0, 1)[:count]


def _gathered(part: Tensor) -> list[Tensor]:
    _, size = ranks()
    if size == 1:
        return [part]
    sent = part if dist.get_backend() == "nccl" else part.cpu()
    parts = [torch.empty_like(sent) for _ in range(size)]
    dist.all_gather(parts, sent)
    return parts


def shared_out(items: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """`work(item)` of every item, in order. Each is done by one rank, and all ranks get it, pickled.

    All ranks have to call this with as many items; raises `RuntimeError` where one does not.
    """
    rank, size = ranks()
    if size == 1:
        return [work(item) for item in items]
    mine = [work(item) for item in items[rank::size]]
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, (len(items), mine))
    if len({count for count, _ in parts}) > 1:
        raise RuntimeError(f"ranks share out {[count for count, _ in parts]} items; one of them began anew")
    return [parts[at % size][1][at // size] for at in range(len(items))]
