"""A Redis that refuses writes, because its disk or its memory is full, is away for a while: no process ends for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tests.integration.sockets import Client, socket
from tests.integration.stack import running
from tests.servers import redis_server, wait_until

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]


async def test_workers_and_records_outlive_refused_writes(tmp_path: Path) -> None:
    with redis_server() as url, running(tmp_path, url) as stack, redis.Redis.from_url(url) as server:
        async with socket(stack, "alice") as alice:
            assert await answer(alice) == "finished"
        # Refuses every command that may write, BRPOP among them, as one does whose disk is full.
        server.config_set("min-replicas-to-write", 1)
        logs = [tmp_path / f"{name}.log" for name in ("worker", "records")]
        wait_until(lambda: all("roker" in log.read_text() for log in logs), 40)
        server.config_set("min-replicas-to-write", 0)
        async with socket(stack, "alice") as alice:
            assert await answer(alice) == "finished"
        assert all(process.poll() is None for process in stack.processes.values())


async def answer(client: Client) -> str:
    """Ask something; return how it ended."""
    await client.send(max_tokens=3)
    end = await client.next("finished", "failed")
    return str(end["type"])
