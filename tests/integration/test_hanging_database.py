"""PostgreSQL stands still, its connections open: what runs goes on, who asks is told in time, and nothing is lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.integration.sockets import Client, Frame, socket, whole_answer
from tests.integration.stack import Stack, running
from tests.servers import PostgreSQL, postgresql, redis_server

pytestmark = [pytest.mark.needs("redis", "postgresql"), pytest.mark.django_db(databases=[])]
TOLD_S = 60.0  # a wait of 20 s, another one for the pool's next connection, and time for a busy machine


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, database: PostgreSQL) -> Iterator[Stack]:
    directory = Path(tmp_path_factory.mktemp("hanging-database"))
    with redis_server() as url, running(directory, url, DATABASE_URL=database.url) as stack:
        yield stack


@pytest.mark.timeout(180)
async def test_who_asks_is_told_in_time_and_what_runs_goes_on(stack: Stack, database: PostgreSQL) -> None:
    client_id = str(uuid.uuid4())
    async with (
        socket(stack, "alice") as alice, socket(stack, "bob") as bob,
        httpx.AsyncClient(base_url=stack.origin, timeout=TOLD_S) as client,
    ):  # fmt: skip
        await alice.send("hello")  # now the process has seen her, and accepts in one round trip
        await alice.next("finished")
        await bob.send("a long story", max_tokens=1000)
        running = await bob.next("started")
        with database.hanging():
            ready = asyncio.create_task(client.get("/readyz"))
            await alice.send("hello", id=client_id)
            read = asyncio.create_task(read_on(bob))
            told = await asyncio.wait_for(alice.next("accepted", "error"), TOLD_S)
            assert (await ready).status_code == 503
            shown = [frame["type"] for frame in bob.of(running["generation"])]
        assert (told["type"], told["code"], told["id"]) == ("error", "unavailable", client_id)
        assert told["unknown"] is True
        assert shown.count("delta") > 10
        assert "finished" not in shown  # it ended meanwhile, and is stored first
        await asyncio.wait_for(read, TOLD_S)
        whole_answer(bob.of(running["generation"]))
        await alice.send("hello", id=client_id)
        accepted = await alice.next("accepted", "error")
        assert accepted["type"] == "accepted"
        await alice.until(lambda frame: frame.get("generation") == accepted["generation"] and is_end(frame))
    with psycopg.connect(database.url) as rows:
        found = rows.execute("SELECT status FROM generations_generation WHERE client_id = %s", (client_id,)).fetchall()
    assert found == [("done",)]


async def read_on(client: Client) -> None:
    await client.next("finished")


def is_end(frame: Frame) -> bool:
    return frame["type"] == "finished" or bool(frame.get("end"))
