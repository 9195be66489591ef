"""A web process with 300 sockets is killed: how soon has each its stream again at the other one?"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter

from tests.chaos.cluster import Cluster
from tests.chaos.scenarios.client import Client, begin
from tests.chaos.scenarios.figures import Figure, at_most, none_of

SOCKETS = 300
TOKENS = 250  # 50 s at the step that this scenario sets
RESUMED_S = 5.0


async def play(cluster: Cluster, seed: int) -> list[Figure]:
    """Kill the first of two; those who were there come to the second within half a second, with their cursor."""
    clients = [Client(cluster, user=number, web=0) for number in range(SOCKETS)]
    gate = asyncio.Semaphore(20)

    async def start(index: int, client: Client) -> object:
        async with gate:
            return await begin(client, f"question {index} of {seed}", TOKENS)

    sockets = await asyncio.gather(*(start(index, client) for index, client in enumerate(clients)))
    reading = [
        asyncio.create_task(client.read_whatever_happens(socket))
        for client, socket in zip(clients, sockets, strict=True)
    ]
    await asyncio.sleep(2)
    killed_at = time.monotonic()
    os.kill(cluster.pids("web")[0], signal.SIGKILL)
    await asyncio.wait(reading, timeout=180)
    hit = [client for client in clients if client.closes]
    delays = [
        min((at for at in client.resumed_at if at > killed_at), default=killed_at + 999) - killed_at for client in hit
    ]
    running = [client for client in hit if client.view.deltas_at[-1] > max(client.resumed_at, default=0)]
    deltas = [min(at for at in client.view.deltas_at if at > client.resumed_at[0]) - killed_at for client in running]
    errors = sum((client.errors for client in hit), Counter())
    return [
        Figure(name="sockets that were cut", seen=str(len(hit)), goal=f"{SOCKETS}", is_met=len(hit) == SOCKETS),
        at_most("killed to resumed", delays, 0.99, RESUMED_S),
        at_most("killed to the next delta", deltas, 0.99, RESUMED_S),
        Figure(name="refused or failed on the way", seen=str(dict(errors))),
        none_of("gaps, repeats, other order", [problem for client in clients for problem in client.view.problems]),
        none_of("never ended", [client.generation for client in clients if client.view.end is None]),
    ]
