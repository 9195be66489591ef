"""Ten times more messages than the workers can answer, for two minutes: what is served, refused, and held in memory?"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field

import psutil

from tests.chaos.cluster import Cluster
from tests.chaos.scenarios.client import Client
from tests.chaos.scenarios.figures import Figure, at_most, none_of, quantile_of
from tests.chaos.users import GONE, Socket

PEAK_S, OVERLOAD_S, TIMES = 20.0, 120.0, 10
TOKENS = 50  # a second of the fake engine
GOODPUT, REFUSED_S, GROWTH = 0.9, 0.25, 0.2


@dataclass
class _Count:
    ended_at: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    accepted_s: list[float] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


async def play(cluster: Cluster, seed: int) -> list[Figure]:
    """Find the peak with as many askers as places and a few, then ask ten times as often."""
    peak = await _peak(cluster, seed)
    before = _memory(cluster)
    count, choose = _Count(), random.Random(seed)
    asking: set[asyncio.Task[None]] = set()
    began, rate = time.monotonic(), peak * TIMES
    most, number = before, 0
    while time.monotonic() < began + OVERLOAD_S:
        client = Client(cluster, user=number, web=number % 2)
        task = asyncio.create_task(_ask(client, f"question {number} of {seed}", count))
        asking.add(task)
        task.add_done_callback(asking.discard)
        number += 1
        if number % 100 == 0:
            most = max(most, _memory(cluster))
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()) * choose.uniform(0.8, 1.2))
    took_s = time.monotonic() - began
    most = max(most, _memory(cluster))
    goodput = sum(began + 10 <= at <= began + OVERLOAD_S for at in count.ended_at) / (OVERLOAD_S - 10)
    if asking:
        await asyncio.wait(asking, timeout=60)
    database = await asyncio.to_thread(cluster.read_all)
    unknown = [row["id"] for row in database["rows"] if row["status"] != "done"]
    return [
        Figure(name="peak", seen=f"{peak:.2f} answers/s"),
        Figure(name="asked", seen=f"{number}, {number / took_s:.1f}/s", goal=f">= {TIMES * 0.9:.0f} x peak",
               is_met=number / took_s >= 0.9 * rate),
        Figure(name="goodput of the peak", seen=f"{goodput / peak:.0%}", goal=f">= {GOODPUT:.0%}",
               is_met=goodput >= GOODPUT * peak),
        at_most("refusal", count.refused_s, 0.95, REFUSED_S),
        Figure(name="accept, p50 / p95", seen=f"{quantile_of(count.accepted_s, .5):.2f} / "
               f"{quantile_of(count.accepted_s, .95):.2f} s of {len(count.accepted_s)}"),
        Figure(name="memory", seen=f"{before / 2**20:.0f} to {most / 2**20:.0f} MiB, {most / before - 1:+.0%}",
               goal=f"<= +{GROWTH:.0%}", is_met=most <= before * (1 + GROWTH)),
        Figure(name="refusals", seen=str(count.codes)),
        none_of("accepted and not answered", unknown),
        none_of("sockets that failed", count.failed),
    ]  # fmt: skip


async def _peak(cluster: Cluster, seed: int) -> float:
    count, until = _Count(), time.monotonic() + PEAK_S

    async def keep_asking(number: int) -> None:
        while time.monotonic() < until:
            await _ask(Client(cluster, user=number, web=number % 2), f"first question {number} of {seed}", count)

    await asyncio.gather(*(keep_asking(number) for number in range(6)))
    return sum(at <= until for at in count.ended_at) / PEAK_S


async def _ask(client: Client, text: str, count: _Count) -> None:
    try:
        async with client.connect() as socket:
            asked_at = time.monotonic()
            answer = await client.ask(socket, text, TOKENS)
            took_s = time.monotonic() - asked_at
            if answer["type"] == "error":
                count.refused_s.append(took_s)
                count.codes[answer["code"]] = count.codes.get(answer["code"], 0) + 1
                return
            count.accepted_s.append(took_s)
            await _read(client, socket)
            count.ended_at.append(time.monotonic())
    except GONE as error:
        count.failed.append(repr(error)[:80])


async def _read(client: Client, socket: Socket) -> None:
    async with asyncio.timeout(60):
        await client.read(socket)


def _memory(cluster: Cluster) -> int:
    """Bytes that the service's processes hold, Redis among them."""
    total = 0
    for role in ("web", "worker", "records", "redis"):
        for pid in cluster.pids(role):
            with contextlib.suppress(psutil.Error):
                total += psutil.Process(pid).memory_info().rss
    return total
