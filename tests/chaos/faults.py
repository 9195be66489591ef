"""What the nemesis can do. Each returns when the fault is over, and says what it hit.

A fault that loses data of Redis is named in `LOSES_DATA`: only then, and only for generations whose worker died as
well, may a reader's text be replaced.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis

from chatproject.contract import broker, names
from chatproject.contract.messages import Lease
from tests.chaos.cluster import Cluster

Hit = dict[str, Any]
Fault = Callable[[Cluster, random.Random], Awaitable[Hit]]
_QUEUE = names.generate_queue("demo")


async def kill_worker(cluster: Cluster, choose: random.Random) -> Hit:
    """`kill -9` of one worker."""
    return await _signal_worker(cluster, choose, signal.SIGKILL)


async def term_worker(cluster: Cluster, choose: random.Random) -> Hit:
    """A deploy: SIGTERM, hand back, come again."""
    return await _signal_worker(cluster, choose, signal.SIGTERM)


async def stop_worker(cluster: Cluster, choose: random.Random) -> Hit:
    """SIGSTOP for longer than a lease, then SIGCONT: a zombie wakes."""
    hit = await _signal_worker(cluster, choose, signal.SIGSTOP)
    await asyncio.sleep(choose.uniform(6, 10))
    _send(hit["pid"], signal.SIGCONT)
    return hit


async def kill_web(cluster: Cluster, choose: random.Random) -> Hit:
    """`kill -9` of one web process, with all its sockets."""
    pid = choose.choice(cluster.pids("web") or [0])
    return {"pid": pid, "did": _send(pid, signal.SIGKILL)}


async def kill_records(cluster: Cluster, choose: random.Random) -> Hit:
    """`kill -9` of what stores ends and sweeps."""
    pid = choose.choice(cluster.pids("records") or [0])
    return {"pid": pid, "did": _send(pid, signal.SIGKILL)}


async def stop_records(cluster: Cluster, choose: random.Random) -> Hit:
    """Nobody stores and nobody sweeps for some seconds."""
    pid = choose.choice(cluster.pids("records") or [0])
    did = _send(pid, signal.SIGSTOP)
    await asyncio.sleep(choose.uniform(3, 6))
    _send(pid, signal.SIGCONT)
    return {"pid": pid, "did": did}


async def drop_tickets(cluster: Cluster, choose: random.Random) -> Hit:
    """For two seconds every Celery message for the workers vanishes, as does every outcome."""

    def drop() -> int:
        with cluster.redis() as client:
            return int(client.delete(*broker.redis_lists(_QUEUE), *broker.redis_lists(names.RECORDS_QUEUE)))

    return {"dropped": await _again_and_again(drop, for_s=2.0)}


async def repeat_tickets(cluster: Cluster, choose: random.Random) -> Hit:
    """Every Celery message is there three times, and outcomes of long ago come again."""

    def repeat() -> int:
        with cluster.redis() as client:
            num = 0
            for key in (*broker.redis_lists(_QUEUE), *broker.redis_lists(names.RECORDS_QUEUE)):
                for text in client.lrange(key, 0, -1):
                    num += bool(client.lpush(key, text, text))
            return num

    return {"repeated": await _again_and_again(repeat, for_s=2.0)}


async def kill_redis(cluster: Cluster, choose: random.Random) -> Hit:
    """`kill -9` of Redis: it comes back from its log file, perhaps without the last second."""
    pid = choose.choice(cluster.pids("redis") or [0])
    return {"pid": pid, "did": _send(pid, signal.SIGKILL)}


async def stop_redis(cluster: Cluster, choose: random.Random) -> Hit:
    """Redis hangs: connections stay, answers do not come."""
    pid = choose.choice(cluster.pids("redis") or [0])
    did = _send(pid, signal.SIGSTOP)
    await asyncio.sleep(choose.uniform(2, 8))
    _send(pid, signal.SIGCONT)
    return {"pid": pid, "did": did}


async def pause_redis(cluster: Cluster, choose: random.Random) -> Hit:
    """`CLIENT PAUSE`: the server lives and answers nobody."""
    pause_ms = choose.randint(1500, 4000)

    def pause() -> None:
        with cluster.redis() as client:
            client.client_pause(pause_ms)

    await asyncio.to_thread(_quietly, pause)
    await asyncio.sleep(pause_ms / 1000)
    return {"ms": pause_ms}


async def flush_redis(cluster: Cluster, choose: random.Random) -> Hit:
    """`FLUSHALL`: logs, leases, requests, tickets, watchers, all."""

    def flush() -> None:
        with cluster.redis() as client:
            client.flushall()

    await asyncio.to_thread(_quietly, flush)
    return {}


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill_worker, term_worker, stop_worker, kill_web, kill_records, stop_records, drop_tickets, repeat_tickets,
        kill_redis, stop_redis, pause_redis, flush_redis,
    )
}  # fmt: skip
LOSES_DATA = frozenset({"kill_redis", "flush_redis"})
KILLS_WORKERS = frozenset({"kill_worker", "term_worker", "stop_worker"})


def leases(cluster: Cluster) -> dict[str, str]:
    """Return who runs what now: generation id to slot. Empty while Redis is away."""
    try:
        with cluster.redis() as client:
            keys = list(client.scan_iter(match=names.lease_key("*"), count=1000))
            values: Any = client.mget(keys) if keys else []
    except redis.RedisError:
        return {}
    prefix = names.lease_key("")
    return {key.removeprefix(prefix): Lease.parse(value).slot for key, value in zip(keys, values, strict=True) if value}


async def _signal_worker(cluster: Cluster, choose: random.Random, number: signal.Signals) -> Hit:
    held = await asyncio.to_thread(leases, cluster)
    pids = {pid: slot for pid in cluster.pids("worker") if (slot := _slot(pid))}
    if not pids:
        return {"pid": 0, "did": False, "running": []}
    # Mostly one that is at work: a fault that hits nothing shows nothing.
    busy = [pid for pid, slot in pids.items() if slot in held.values()]
    pid = choose.choice(busy if busy and choose.random() < 0.9 else sorted(pids))
    running = [id_ for id_, slot in held.items() if slot == pids[pid]]
    return {"pid": pid, "slot": pids[pid], "did": _send(pid, number), "running": running}


def _slot(pid: int) -> str:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((item[10:].decode() for item in environment if item.startswith(b"CHAT_SLOT=")), "")


def _send(pid: int, number: signal.Signals) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


async def _again_and_again(do: Callable[[], int], *, for_s: float) -> int:
    loop = asyncio.get_running_loop()
    until, total = loop.time() + for_s, 0
    while loop.time() < until:
        total += await asyncio.to_thread(_quietly, do) or 0
        await asyncio.sleep(0.02)
    return total


def _quietly(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except redis.RedisError:
        return None  # it is away already
