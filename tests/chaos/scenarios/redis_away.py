"""Redis answers nobody for half a minute: does a socket close, and how soon do streams go on?"""

from __future__ import annotations

import asyncio
import os
import signal
import time

from tests.chaos.cluster import Cluster
from tests.chaos.scenarios.client import Client, begin
from tests.chaos.scenarios.figures import Figure, at_most, none_of

AWAY_S = 30.0
STREAMS, IDLE = 40, 40
TOKENS = 2500  # 50 s of the fake engine
BACK_S = 3.0


async def play(cluster: Cluster, seed: int) -> list[Figure]:
    """Stop Redis while streams run and other sockets are open."""
    clients = [Client(cluster, user=number, web=number % 2) for number in range(STREAMS)]
    sockets = [await begin(client, f"question {index} of {seed}", TOKENS) for index, client in enumerate(clients)]
    idle = [Client(cluster, user=number, web=number % 2).connect() for number in range(IDLE)]
    for socket in idle:
        await socket.__aenter__()
    reading = [
        asyncio.create_task(client.read_whatever_happens(socket))
        for client, socket in zip(clients, sockets, strict=True)
    ]
    (redis,) = cluster.pids("redis")
    os.kill(redis, signal.SIGSTOP)
    await asyncio.sleep(AWAY_S)
    os.kill(redis, signal.SIGCONT)
    back_at = time.monotonic()
    await asyncio.wait(reading, timeout=120)
    closed = [f"stream {index}" for index, client in enumerate(clients) if client.closes]
    for index, socket in enumerate(idle):
        if not await socket.is_open():
            closed.append(f"idle {index}")
        await socket.__aexit__()
    firsts = [
        min((at for at in client.view.deltas_at if at >= back_at), default=back_at + 999) - back_at
        for client in clients
    ]
    problems = [problem for client in clients for problem in client.view.problems]
    lost = [str(index) for index, client in enumerate(clients) if client.view.end is None]
    return [
        none_of(f"sockets closed of {STREAMS + IDLE}, Redis away {AWAY_S:.0f} s", closed),
        at_most("Redis back to the next delta", firsts, 1.0, BACK_S),
        none_of("gaps, repeats, other order", problems),
        none_of("never ended", lost),
    ]
