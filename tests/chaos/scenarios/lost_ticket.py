"""Every Celery message around an accept is lost: how late does the answer start?"""

from __future__ import annotations

import asyncio
import time

from tests.chaos.cluster import Cluster
from tests.chaos.planted import tickets
from tests.chaos.scenarios.client import Client
from tests.chaos.scenarios.figures import Figure, at_most

TIMES = 40
LATE_S = 3.0
_MARGIN_S = 0.15  # from `accepted` until its ticket was sent, and lost


async def play(cluster: Cluster, seed: int) -> list[Figure]:
    """Ask one after another; while each is accepted, tickets vanish."""
    order, count = tickets.order_file(cluster.proxy.control), tickets.count_file(cluster.proxy.control)
    delays: list[float] = []
    for number in range(TIMES):
        client = Client(cluster, user=number, web=number % 2)
        async with client.connect() as socket:
            order.write_text("drop")
            await client.ask(socket, f"question {number} of {seed}", 8)
            accepted_at = time.monotonic()
            await asyncio.sleep(_MARGIN_S)
            order.unlink()
            await client.read(socket)
        delays.append((client.view.started_at or time.monotonic()) - accepted_at)
    num_lost = count.stat().st_size if count.exists() else 0
    return [
        at_most("accepted, and its ticket lost, to `started`", delays, 1.0, LATE_S),
        Figure(name="messages lost", seen=str(num_lost), goal=f">= {TIMES}", is_met=num_lost >= TIMES),
    ]
