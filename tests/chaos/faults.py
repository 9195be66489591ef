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

import psycopg
import redis

from chatproject.contract import names
from chatproject.contract.messages import Lease
from tests.chaos import disk
from tests.chaos.cluster import Cluster
from tests.chaos.planted import tickets
from tests.chaos.proxy import ROLES

Hit = dict[str, Any]
Fault = Callable[[Cluster, random.Random], Awaitable[Hit]]


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


async def term_web(cluster: Cluster, choose: random.Random) -> Hit:
    """A deploy: SIGTERM of one web process, with all its sockets."""
    pid = choose.choice(cluster.pids("web") or [0])
    return {"pid": pid, "did": _send(pid, signal.SIGTERM)}


async def stop_web(cluster: Cluster, choose: random.Random) -> Hit:
    """One web process takes connections and answers nobody, for longer than its clients are patient."""
    pid = choose.choice(cluster.pids("web") or [0])
    url, stopped_s = cluster.url_of(pid), choose.uniform(21, 24)
    did = _send(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(stopped_s)
    finally:
        _send(pid, signal.SIGCONT)
    return {"pid": pid, "did": did, "url": url, "s": stopped_s}


async def kill_records(cluster: Cluster, choose: random.Random) -> Hit:
    """`kill -9` of what stores ends and sweeps."""
    pid = choose.choice(cluster.pids("records") or [0])
    return {"pid": pid, "did": _send(pid, signal.SIGKILL)}


async def term_records(cluster: Cluster, choose: random.Random) -> Hit:
    """A deploy: SIGTERM of what stores ends and sweeps."""
    pid = choose.choice(cluster.pids("records") or [0])
    return {"pid": pid, "did": _send(pid, signal.SIGTERM)}


async def stop_records(cluster: Cluster, choose: random.Random) -> Hit:
    """Nobody stores and nobody sweeps for some seconds."""
    pid = choose.choice(cluster.pids("records") or [0])
    did = _send(pid, signal.SIGSTOP)
    await asyncio.sleep(choose.uniform(3, 6))
    _send(pid, signal.SIGCONT)
    return {"pid": pid, "did": did}


async def drop_tickets(cluster: Cluster, choose: random.Random) -> Hit:
    """For two seconds every Celery message for the workers vanishes, as does every outcome."""
    return {"dropped": await _order_tickets(cluster, "drop", for_s=2.0)}


async def repeat_tickets(cluster: Cluster, choose: random.Random) -> Hit:
    """Every Celery message is there twice, and some of long ago come again."""
    return {"repeated": await _order_tickets(cluster, "repeat", for_s=2.0)}


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


async def fill_redis(cluster: Cluster, choose: random.Random) -> Hit:
    """Redis has no memory left: it answers reads, and refuses every write that needs some."""
    full_s = choose.uniform(2, 6)
    running = await asyncio.to_thread(lambda: sorted(leases(cluster)))

    def limit(much: str) -> bool:
        with cluster.redis() as client:
            return bool(client.config_set("maxmemory", much))

    did = await asyncio.to_thread(_quietly, lambda: limit("1mb"))
    await asyncio.sleep(full_s)
    await _insist(lambda: limit("0"))
    return {"did": bool(did), "s": full_s, "running": running}


async def refuse_writes(cluster: Cluster, choose: random.Random) -> Hit:
    """Redis lacks a replica and serves reads alone, for longer than any lease; a worker is killed meanwhile."""
    refused_s = choose.uniform(12, 20)
    kill_after_s = choose.uniform(1, refused_s / 2)
    running = await asyncio.to_thread(lambda: sorted(leases(cluster)))

    def demand_replicas(num: int) -> bool:
        with cluster.redis() as client:
            return bool(client.config_set("min-replicas-to-write", num))

    did = await asyncio.to_thread(_quietly, lambda: demand_replicas(1))
    await asyncio.sleep(kill_after_s)
    killed = await kill_worker(cluster, choose)
    await asyncio.sleep(refused_s - kill_after_s)
    await _insist(lambda: demand_replicas(0))
    return {"did": bool(did), "s": refused_s, "running": running, "killed": killed["pid"]}


async def fill_disk(cluster: Cluster, choose: random.Random) -> Hit:
    """No byte is free where Redis, SQLite and the logs are written, perhaps longer than a lease."""
    full_s = choose.uniform(2, 8)
    running = await asyncio.to_thread(lambda: sorted(leases(cluster)))
    filler = await asyncio.to_thread(disk.fill, cluster.service.root / "var")
    size = filler.stat().st_size
    await asyncio.sleep(full_s)
    filler.unlink()
    return {"s": full_s, "bytes": size, "running": running}


async def crash_database(cluster: Cluster, choose: random.Random) -> Hit:
    """`kill -9` of a backend: PostgreSQL ends every connection, and recovers from its log."""

    def crash() -> int:
        try:
            connection = psycopg.connect(cluster.service.state["database"], connect_timeout=5)
        except psycopg.OperationalError:
            return 0  # It recovers still.
        pid = connection.info.backend_pid
        _send(pid, signal.SIGKILL)
        connection.close()
        return pid

    pid = await asyncio.to_thread(crash)
    return {"pid": pid, "did": bool(pid)}


async def restart_database(cluster: Cluster, choose: random.Random) -> Hit:
    """The whole server ends, tidily or as in a crash, and is back after some seconds."""
    server, how = cluster.database, choose.choice((signal.SIGINT, signal.SIGQUIT))
    assert server is not None
    await asyncio.to_thread(server.stop, how)
    away_s = choose.uniform(0.5, 3)
    await asyncio.sleep(away_s)
    server.start()  # in this thread: it ends with the one that starts it
    return {"did": True, "s": away_s, "how": how.name}


async def stop_database(cluster: Cluster, choose: random.Random) -> Hit:
    """PostgreSQL hangs, perhaps for longer than the service waits: connections stay, answers do not come."""
    assert cluster.database is not None
    stopped_s = choose.uniform(6, 26)
    with cluster.database.hanging():
        await asyncio.sleep(stopped_s)
    return {"did": True, "s": stopped_s}


async def cut_links(cluster: Cluster, choose: random.Random) -> Hit:
    """Every connection of a role to Redis and the database is reset, some times in a row."""
    role, connections = choose.choice(ROLES), []
    for _ in range(choose.randint(1, 4)):
        connections.append(cluster.proxy.cut(role))
        await asyncio.sleep(choose.uniform(0.1, 0.8))
    return {"role": role, "connections": connections}


async def hold_links(cluster: Cluster, choose: random.Random) -> Hit:
    """Black hole: what a role sends does not arrive, nor do answers; perhaps longer than a lease, then all at once."""
    role, held_s = choose.choice(ROLES), choose.uniform(2, 9)
    # For everyone else, a worker that is not heard is dead.
    running = await asyncio.to_thread(lambda: sorted(leases(cluster))) if role == "worker" else []
    num = cluster.proxy.hold(role)
    await asyncio.sleep(held_s)
    cluster.proxy.heal(role)
    return {"role": role, "s": held_s, "connections": num, "running": running}


async def delay_links(cluster: Cluster, choose: random.Random) -> Hit:
    """A slow network: every piece of a role's traffic waits."""
    role, delay_s = choose.choice(ROLES), choose.uniform(0.05, 0.4)
    num = cluster.proxy.delay(role, delay_s)
    await asyncio.sleep(choose.uniform(3, 6))
    cluster.proxy.heal(role)
    return {"role": role, "s": delay_s, "connections": num}


async def throttle_links(cluster: Cluster, choose: random.Random) -> Hit:
    """A thin network: each connection of a role passes 20 to 100 KiB a second."""
    role, rate = choose.choice(ROLES), choose.randint(20, 100)
    num = cluster.proxy.delay(role, 1 / rate, piece=1024)
    await asyncio.sleep(choose.uniform(3, 6))
    cluster.proxy.heal(role)
    return {"role": role, "KiB/s": rate, "connections": num}


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill_worker, term_worker, stop_worker, kill_web, term_web, stop_web, kill_records, term_records, stop_records,
        drop_tickets, repeat_tickets, kill_redis, stop_redis, pause_redis, flush_redis, fill_redis, refuse_writes,
        fill_disk, crash_database, restart_database, stop_database, cut_links, hold_links, delay_links, throttle_links,
    )
}  # fmt: skip
NEEDS_POSTGRESQL = frozenset({"crash_database", "restart_database", "stop_database"})
NEEDS_ROOT = frozenset({"fill_disk"})
LOSES_DATA = frozenset({"kill_redis", "flush_redis"})
# Those after which others may hold a worker for dead; what it ran is in the hit.
KILLS_WORKERS = frozenset({
    "kill_worker", "term_worker", "stop_worker", "hold_links", "fill_redis", "refuse_writes", "fill_disk",
})  # fmt: skip

# Those during which no frame can reach anybody. A killed web process is none: its readers come back at once.
SILENCES = frozenset({
    "hold_links", "stop_redis", "pause_redis", "kill_redis", "flush_redis", "fill_redis", "refuse_writes", "fill_disk",
    "crash_database", "restart_database", "stop_database", "stop_records", "throttle_links",
})  # fmt: skip
# The same for those alone who are connected to the process at the hit's url.
SILENCES_ONE = frozenset({"stop_web"})
# The next faults come meanwhile: it is long, and touches one process of several.
BESIDE_OTHERS = frozenset({"stop_web"})


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
    # By its log file: one that was a spare had no slot yet when the system noted its environment.
    try:
        log = Path(f"/proc/{pid}/fd/1").readlink().name
    except OSError:
        return ""
    return log.removeprefix("worker-").removesuffix(".log") if log.startswith("worker-w") else ""


def _send(pid: int, number: signal.Signals) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


async def _order_tickets(cluster: Cluster, order: str, *, for_s: float) -> int:
    count = tickets.count_file(cluster.proxy.control)
    before = count.stat().st_size if count.exists() else 0
    tickets.order_file(cluster.proxy.control).write_text(order)
    try:
        await asyncio.sleep(for_s)
    finally:
        tickets.order_file(cluster.proxy.control).unlink()
    return (count.stat().st_size if count.exists() else 0) - before


async def _insist(do: Callable[[], Any]) -> None:
    """Do it within 30 s: Redis may be away just now."""
    for _ in range(60):
        if await asyncio.to_thread(_quietly, do):
            break
        await asyncio.sleep(0.5)


def _quietly(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except redis.RedisError:
        return None  # it is away already
