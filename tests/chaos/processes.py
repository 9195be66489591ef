"""What is done to the service's own processes and to their tickets. Each returns when it is over, with what it hit.

Knows nothing of what is around them: Redis is only asked who runs what.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import redis

from chatproject.contract import names
from chatproject.contract.messages import Lease
from tests.chaos.cluster import Cluster
from tests.chaos.planted import tickets

Hit = dict[str, Any]


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
    send(hit["pid"], signal.SIGCONT)
    return hit


async def kill_web(cluster: Cluster, choose: random.Random) -> Hit:
    """`kill -9` of one web process, with all its sockets."""
    pid = choose.choice(cluster.pids("web") or [0])
    return {"pid": pid, "did": send(pid, signal.SIGKILL)}


async def term_web(cluster: Cluster, choose: random.Random) -> Hit:
    """A deploy: SIGTERM of one web process, with all its sockets."""
    pid = choose.choice(cluster.pids("web") or [0])
    return {"pid": pid, "did": send(pid, signal.SIGTERM)}


async def stop_web(cluster: Cluster, choose: random.Random) -> Hit:
    """One web process takes connections and answers nobody, for longer than its clients are patient."""
    pid = choose.choice(cluster.pids("web") or [0])
    url, stopped_s = cluster.url_of(pid), choose.uniform(21, 24)
    did = send(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(stopped_s)
    finally:
        send(pid, signal.SIGCONT)
    return {"pid": pid, "did": did, "url": url, "s": stopped_s}


async def kill_records(cluster: Cluster, choose: random.Random) -> Hit:
    """`kill -9` of what stores ends and sweeps."""
    pid = choose.choice(cluster.pids("records") or [0])
    return {"pid": pid, "did": send(pid, signal.SIGKILL)}


async def term_records(cluster: Cluster, choose: random.Random) -> Hit:
    """A deploy: SIGTERM of what stores ends and sweeps."""
    pid = choose.choice(cluster.pids("records") or [0])
    return {"pid": pid, "did": send(pid, signal.SIGTERM)}


async def stop_records(cluster: Cluster, choose: random.Random) -> Hit:
    """Nobody stores and nobody sweeps for some seconds."""
    pid = choose.choice(cluster.pids("records") or [0])
    did = send(pid, signal.SIGSTOP)
    await asyncio.sleep(choose.uniform(3, 6))
    send(pid, signal.SIGCONT)
    return {"pid": pid, "did": did}


async def drop_tickets(cluster: Cluster, choose: random.Random) -> Hit:
    """For two seconds every Celery message for the workers vanishes, as does every outcome."""
    return {"dropped": await _order_tickets(cluster, "drop", for_s=2.0)}


async def repeat_tickets(cluster: Cluster, choose: random.Random) -> Hit:
    """Every Celery message is there twice, and some of long ago come again."""
    return {"repeated": await _order_tickets(cluster, "repeat", for_s=2.0)}


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


def send(pid: int, number: signal.Signals) -> bool:
    """Signal a process; return whether it was there."""
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


async def _signal_worker(cluster: Cluster, choose: random.Random, number: signal.Signals) -> Hit:
    held = await asyncio.to_thread(leases, cluster)
    pids = {pid: slot for pid in cluster.pids("worker") if (slot := _slot(pid))}
    if not pids:
        return {"pid": 0, "did": False, "running": []}
    # Mostly one that is at work: a fault that hits nothing shows nothing.
    busy = [pid for pid, slot in pids.items() if slot in held.values()]
    pid = choose.choice(busy if busy and choose.random() < 0.9 else sorted(pids))
    running = [id_ for id_, slot in held.items() if slot == pids[pid]]
    return {"pid": pid, "slot": pids[pid], "did": send(pid, number), "running": running}


def _slot(pid: int) -> str:
    # By its log file: one that was a spare had no slot yet when the system noted its environment.
    try:
        log = Path(f"/proc/{pid}/fd/1").readlink().name
    except OSError:
        return ""
    return log.removeprefix("worker-").removesuffix(".log") if log.startswith("worker-w") else ""


async def _order_tickets(cluster: Cluster, order: str, *, for_s: float) -> int:
    count = tickets.count_file(cluster.proxy.control)
    before = count.stat().st_size if count.exists() else 0
    tickets.order_file(cluster.proxy.control).write_text(order)
    try:
        await asyncio.sleep(for_s)
    finally:
        tickets.order_file(cluster.proxy.control).unlink()
    return (count.stat().st_size if count.exists() else 0) - before
