"""What a fault is to do it does, to real servers and processes, and it is over when it says so."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import redis

from tests.chaos import nemesis, processes, surroundings
from tests.servers import postgresql


class Soon(random.Random):
    """Chooses so that nothing lasts."""

    def uniform(self, a: float, b: float) -> float:
        return 0.3


def cluster_of(**parts: Any) -> Any:
    def pids(role: str) -> list[int]:
        return parts.get(role, [])

    return SimpleNamespace(pids=pids, **parts)


@pytest.mark.needs("redis")
async def test_writes_are_refused_and_reads_served_until_it_is_over(fresh_redis_url: str) -> None:
    cluster = cluster_of(redis=lambda: redis.Redis.from_url(fresh_redis_url, decode_responses=True))
    with cluster.redis() as client:
        client.set("before", "1")
        going = asyncio.create_task(surroundings.refuse_writes(cluster, Soon()))
        await asyncio.sleep(0.15)
        assert client.get("before") == "1"
        with pytest.raises(redis.RedisError, match="NOREPLICAS"):
            client.set("meanwhile", "1")
        assert (await going)["did"]
        assert client.set("after", "1")


@pytest.mark.needs("postgresql")
async def test_a_whole_database_goes_and_comes_back_with_what_was_committed() -> None:
    with postgresql(outlives_kills=True) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
            pid = server.process.pid
            await surroundings.restart_database(cluster_of(database=server), Soon(1))
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert server.process.pid != pid
        assert _answer(server.url, "SELECT one FROM kept") == 1


def _answer(url: str, question: str) -> Any:
    deadline = time.monotonic() + 20
    while True:
        try:
            with psycopg.connect(url) as connection:
                return connection.execute(question).fetchone()[0]  # type: ignore[index]
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as started:
        yield started
        started.kill()


async def test_a_web_process_hangs_while_other_faults_come(
    monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes]
) -> None:
    order: list[str] = []

    async def kill_redis(cluster: Any, choose: random.Random) -> dict[str, Any]:
        await asyncio.sleep(0.1)  # of the 0.3 s that it hangs
        order.append(_state(process.pid))
        return {}

    monkeypatch.setattr(nemesis, "FAULTS", {"stop_web": processes.stop_web, "kill_redis": kill_redis})
    monkeypatch.setattr(random, "Random", Soon)
    history = SimpleNamespace(now=0.0, note=lambda *_, **__: time.monotonic())
    cluster = cluster_of(web=[process.pid], url_of=lambda pid: f"http://of.{pid}")
    kinds = ["stop_web", "kill_redis"]
    done = await nemesis.run(cluster, history, seed=1, kinds=kinds, first_s=0, over_s=0)  # type: ignore[arg-type]
    assert order == ["T"]
    assert _state(process.pid) != "T"
    assert [each.kind for each in done] == kinds
    assert done[0].hit["url"] == f"http://of.{process.pid}"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
