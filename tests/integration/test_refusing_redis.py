"""A Redis that refuses writes or is gone for a while: no process ends for it, and all are back soon after it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import redis

from tests.integration.sockets import Client, socket
from tests.integration.stack import running
from tests.servers import free_port, redis_server, wait_until

AWAY_S = 7.0  # Celery's own consumer tries after 2, 6 and 12 s
SOON_S = 4.0

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


async def test_answers_end_soon_after_redis_is_back(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, f"redis://127.0.0.1:{port}/0") as stack:
        with redis_server(port=port):
            async with socket(stack, "alice") as alice:
                assert await answer(alice) == "finished"
        await asyncio.sleep(AWAY_S)
        with redis_server(port=port):
            back_at = time.monotonic()
            async with socket(stack, "alice") as alice:
                assert await answer(alice) == "finished"
            assert time.monotonic() - back_at < SOON_S


async def answer(client: Client) -> str:
    """Ask something; return how it ended."""
    await client.send(max_tokens=3)
    end = await client.next("finished", "failed")
    return str(end["type"])
