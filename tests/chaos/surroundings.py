"""What is done around the service: to Redis, PostgreSQL, the disk, and the links between it and them.

Each returns when it is over, with what it hit.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from typing import Any

import psycopg
import redis

from tests.chaos import disk
from tests.chaos.cluster import Cluster
from tests.chaos.processes import Hit, kill_worker, leases, send
from tests.chaos.proxy import ROLES


async def kill_redis(cluster: Cluster, choose: random.Random) -> Hit:
    """`kill -9` of Redis: it comes back from its log file, perhaps without the last second."""
    pid = choose.choice(cluster.pids("redis") or [0])
    return {"pid": pid, "did": send(pid, signal.SIGKILL)}


async def stop_redis(cluster: Cluster, choose: random.Random) -> Hit:
    """Redis hangs: connections stay, answers do not come."""
    pid = choose.choice(cluster.pids("redis") or [0])
    did = send(pid, signal.SIGSTOP)
    await asyncio.sleep(choose.uniform(2, 8))
    send(pid, signal.SIGCONT)
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
        send(pid, signal.SIGKILL)
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
