"""Stop is sent around the moment at which the answer ends by itself: there must be one outcome, the same everywhere."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from tests.chaos.cluster import Cluster
from tests.chaos.scenarios.client import Client
from tests.chaos.scenarios.figures import Figure, none_of

TIMES, AT_ONCE = 1000, 8
TOKENS = 16  # 320 ms of the fake engine


async def play(cluster: Cluster, seed: int) -> list[Figure]:
    """Ask in one tab, read in another at the other web process, stop from either."""
    choose, gate = random.Random(seed), asyncio.Semaphore(AT_ONCE)
    pairs = [(Client(cluster, user=n, web=n % 2), Client(cluster, user=n, web=(n + 1) % 2)) for n in range(TIMES)]

    async def race(number: int, delay_s: float) -> None:
        first, second = pairs[number]
        async with gate, first.connect() as one, second.connect() as two:
            await first.ask(one, f"question {number} of {seed}", TOKENS)
            second.generation = first.generation
            await two.put(type="resume", generation=first.generation, after=0)

            async def stop() -> None:
                await asyncio.sleep(delay_s)
                await (one, two)[number % 2].put(type="stop", generation=first.generation)

            await asyncio.gather(first.read(one), second.read(two), stop())

    results = await asyncio.gather(
        *(race(number, choose.uniform(0.0, 0.45)) for number in range(TIMES)), return_exceptions=True
    )
    await asyncio.sleep(5)
    database = await asyncio.to_thread(cluster.read_all)
    rows, charged = {row["id"]: row for row in database["rows"]}, Counter(database["charged"])
    outcomes: Counter[str] = Counter()
    differing, wrong_charge = [], []
    for first, second in pairs:
        row = rows.get(first.generation)
        told = {_told(client) for client in (first, second)}
        stored = (row["status"] == "cancelled", row["sha256"], row["answer"]) if row else None
        outcomes[row["status"] if row else "no row"] += 1
        if told != {stored}:
            differing.append(f"{first.generation}: {len(told)} told, {row['status'] if row else 'no row'} stored")
        if charged[first.generation] != 1:
            wrong_charge.append(first.generation)
    least = min(outcomes["done"], outcomes["cancelled"])
    return [
        none_of(f"races of {TIMES} that tabs and row tell differently", differing),
        none_of("charged other than once", wrong_charge),
        none_of("tabs that failed", [repr(result) for result in results if result is not None]),
        none_of("gaps, repeats", [text for pair in pairs for client in pair for text in client.view.problems]),
        Figure(name="outcomes", seen=str(dict(outcomes)), goal=">= 10 % each", is_met=least >= TIMES / 10),
    ]


def _told(client: Client) -> tuple[bool, str, str] | None:
    end = client.view.end
    return (end.get("reason") == "cancelled", end.get("sha256", ""), client.view.text) if end else None
