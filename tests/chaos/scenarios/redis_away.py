"""Redis answers nobody for half a minute: does a socket close, and how soon do streams go on, end and begin?"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence

from tests.chaos.cluster import Cluster
from tests.chaos.scenarios.client import Client, begin
from tests.chaos.scenarios.figures import Figure, at_most, none_of

AWAY_S = 30.0
STREAMS, IDLE = 40, 40
TOKENS = 2500  # 50 s of the fake engine
ENDING, FEW_TOKENS = 10, 600  # so many streams end while Redis is away
ASKING = 10  # so many ask while it is away
BACK_S, NEVER_S = 3.0, 999.0


async def play(cluster: Cluster, seed: int) -> list[Figure]:
    """Stop Redis while streams run and other sockets are open."""
    clients = [Client(cluster, user=number, web=number % 2) for number in range(STREAMS)]
    sockets = [
        await begin(client, f"question {index} of {seed}", FEW_TOKENS if index < ENDING else TOKENS)
        for index, client in enumerate(clients)
    ]
    idle = [Client(cluster, user=number, web=number % 2).connect() for number in range(IDLE)]
    for socket in idle:
        await socket.__aenter__()
    reading = [
        asyncio.create_task(client.read_whatever_happens(socket))
        for client, socket in zip(clients, sockets, strict=True)
    ]
    (redis,) = cluster.pids("redis")
    os.kill(redis, signal.SIGSTOP)
    await asyncio.sleep(AWAY_S / 2)
    askers = [Client(cluster, user=number, web=number % 2) for number in range(ASKING)]
    reading += [
        asyncio.create_task(_ask_and_read(client, f"are you there? {index} of {seed}"))
        for index, client in enumerate(askers)
    ]
    await asyncio.sleep(AWAY_S / 2)
    os.kill(redis, signal.SIGCONT)
    back_at = time.monotonic()
    await asyncio.wait(reading, timeout=120)
    everyone = [*clients, *askers]
    closed = [f"stream {index}" for index, client in enumerate(everyone) if client.closes]
    for index, socket in enumerate(idle):
        if not await socket.is_open():
            closed.append(f"idle {index}")
        await socket.__aexit__()
    problems = [problem for client in everyone for problem in client.view.problems]
    lost = [str(index) for index, client in enumerate(everyone) if client.view.end is None]
    return [
        none_of(f"sockets closed of {STREAMS + ASKING + IDLE}, Redis away {AWAY_S:.0f} s", closed),
        at_most("Redis back to the next delta", _next_deltas(clients[ENDING:], back_at), 1.0, BACK_S),
        at_most("Redis back to the end of what ended meanwhile", _ends(clients[:ENDING], back_at), 1.0, BACK_S),
        at_most("Redis back to the first delta of who asked meanwhile", _next_deltas(askers, back_at), 1.0, BACK_S),
        none_of("gaps, repeats, other order", problems),
        none_of("never ended", lost),
    ]


async def _ask_and_read(client: Client, text: str) -> None:
    await client.read_whatever_happens(await begin(client, text, FEW_TOKENS))


def _next_deltas(clients: Sequence[Client], since: float) -> list[float]:
    return [
        min((at for at in client.view.deltas_at if at >= since), default=since + NEVER_S) - since for client in clients
    ]


def _ends(clients: Sequence[Client], since: float) -> list[float]:
    return [(client.view.ended_at or since + NEVER_S) - since for client in clients]
