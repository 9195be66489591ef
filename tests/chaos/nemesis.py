"""Breaks the service at moments and in ways that the seed chooses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos import disk
from tests.chaos.cluster import Cluster
from tests.chaos.faults import BESIDE_OTHERS, FAULTS, NEEDS_POSTGRESQL, NEEDS_ROOT
from tests.chaos.history import History

# `kill -9`, of which a worker's is what the promise is about: half of all faults, and the rest the others in turn.
KILLS = {"kill_worker": 4, "kill_web": 1, "kill_records": 1, "kill_redis": 1, "crash_database": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One fault as it was."""

    kind: str
    began: float
    ended: float
    hit: dict[str, Any]


def choose_faults(seed: int, num: int, only: Sequence[str], database: str) -> list[str]:
    """Return the kinds in their order: half of them kills, the others of this database about equally often."""
    choose = random.Random(f"faults of {seed}")
    lacking = (NEEDS_POSTGRESQL if database == "sqlite" else frozenset()) | (
        frozenset() if disk.is_possible() else NEEDS_ROOT
    )
    if only:
        return _in_turn(choose, list(only), num)
    possible = [kind for kind in sorted(FAULTS) if kind not in lacking]
    kills = [kind for kind in possible for _ in range(KILLS.get(kind, 0))]
    others = [kind for kind in possible if kind not in KILLS]
    chosen = _in_turn(choose, kills, num - num // 2) + _in_turn(choose, others, num // 2)
    choose.shuffle(chosen)
    return chosen


def _in_turn(choose: random.Random, kinds: Sequence[str], num: int) -> list[str]:
    chosen: list[str] = []
    while len(chosen) < num:
        chosen += choose.sample(kinds, len(kinds))
    return chosen[:num]


async def run(
    cluster: Cluster, history: History, *, seed: int, kinds: Sequence[str], first_s: float, over_s: float
) -> list[Done]:
    """Do all of them, spread over ``over_s``; the first after ``first_s``."""
    choose, done = random.Random(f"nemesis of {seed}"), []
    gap_s = over_s / max(1, len(kinds))
    start = history.now + first_s

    async def do(kind: str, choose: random.Random) -> None:
        began = history.note("fault", kind=kind)
        hit = await FAULTS[kind](cluster, choose)
        done.append(Done(kind=kind, began=began, ended=history.note("over", kind=kind, **hit), hit=hit))

    async with asyncio.TaskGroup() as beside:
        for index, kind in enumerate(kinds):
            # After a long one others are late; they still do not come all at once.
            await asyncio.sleep(max(gap_s / 4, start + (index + choose.uniform(0, 0.6)) * gap_s - history.now))
            if kind in BESIDE_OTHERS:
                beside.create_task(do(kind, random.Random(f"{kind} {index} of {seed}")))
            else:
                await do(kind, choose)
    return sorted(done, key=lambda each: each.began)
