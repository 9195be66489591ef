"""Breaks the service at moments and in ways that the seed chooses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos import disk
from tests.chaos.cluster import Cluster
from tests.chaos.faults import FAULTS, NEEDS_POSTGRESQL, NEEDS_ROOT
from tests.chaos.history import History

# The kill of a worker is what the promise is about; the rest in turn.
WEIGHT = {"kill_worker": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One fault as it was."""

    kind: str
    began: float
    ended: float
    hit: dict[str, Any]


def choose_faults(seed: int, num: int, only: Sequence[str], database: str) -> list[str]:
    """Return the kinds in their order: every kind that this database has about equally often, kills more."""
    choose = random.Random(f"faults of {seed}")
    lacking = (NEEDS_POSTGRESQL if database == "sqlite" else frozenset()) | (
        frozenset() if disk.is_possible() else NEEDS_ROOT
    )
    possible = [kind for kind in sorted(FAULTS) if kind not in lacking]
    kinds = [kind for kind in (only or possible) for _ in range(1 if only else WEIGHT.get(kind, 1))]
    chosen: list[str] = []
    while len(chosen) < num:
        choose.shuffle(kinds)
        chosen += kinds
    return chosen[:num]


async def run(
    cluster: Cluster, history: History, *, seed: int, kinds: Sequence[str], first_s: float, over_s: float
) -> list[Done]:
    """Do all of them, spread over ``over_s``; the first after ``first_s``."""
    choose, done = random.Random(f"nemesis of {seed}"), []
    gap_s = over_s / max(1, len(kinds))
    start = history.now + first_s
    for index, kind in enumerate(kinds):
        await asyncio.sleep(max(0.0, start + (index + choose.uniform(0, 0.6)) * gap_s - history.now))
        began = history.note("fault", kind=kind)
        hit = await FAULTS[kind](cluster, choose)
        done.append(Done(kind=kind, began=began, ended=history.note("over", kind=kind, **hit), hit=hit))
    return done
