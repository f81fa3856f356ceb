"""Some of many rows, without a preference for those that a file has first."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Any


def spread(strata: Sequence[Hashable], most: int, seed: int) -> list[int]:
    """The places of `most` rows, in their order: from every stratum its share of them, to one row, drawn by `seed`.
    Fewer rows of the same seed are among the more."""
    members: dict[Hashable, list[int]] = {}
    for place, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(place)
    rng, found = random.Random(seed), []
    for stratum in sorted(members, key=repr):
        places, start = members[stratum], rng.random()
        rng.shuffle(places)
        found += [((rank + start) / len(places), place) for rank, place in enumerate(places)]
    return sorted(place for _, place in sorted(found)[:most])


def capped(rows: Any, most: int | None, seed: int) -> Any:
    """A data frame's rows, or `most` of them over all sources and categories."""
    if most is None or most >= len(rows):
        return rows
    return rows.iloc[spread(list(zip(rows["source"], rows["category"], strict=True)), most, seed)]
