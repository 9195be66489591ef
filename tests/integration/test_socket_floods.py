"""Clients that send what nobody asked for: the process keeps no more of it than it can hold, and serves the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.sockets import bare, masked, socket
from tests.integration.stack import Stack, running
from tests.servers import redis_server

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]
PING = 9


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # A Redis of its own: what waits here for ever would fill the queue of others.
    with redis_server() as url, running(Path(tmp_path_factory.mktemp("floods")), url, with_worker=False) as stack:
        yield stack


async def test_ping_is_answered_with_what_it_held(stack: Stack) -> None:
    async with socket(stack, "alice") as alice, asyncio.timeout(20):
        for payload in (b"", b"x", bytes(range(125)), bytes(range(131, 256))):
            await (await alice.connection.ping(payload))
        # Between frames, and the socket goes on.
        await alice.say(type="nothing")
        assert await alice.refused() == "bad_frame"


async def test_pings_count_as_frames(stack: Stack) -> None:
    async with socket(stack, "alice") as alice:
        with contextlib.suppress(Exception):
            for _ in range(200):
                await alice.connection.ping(os.urandom(8))
        assert await alice.closed() == 4400
    assert {frame["code"] for frame in alice.seen} == {"rate_limited"}


async def test_pings_of_a_client_that_never_reads_are_not_kept(stack: Stack) -> None:
    before = stack.memory_bytes("web")
    connected = await bare(stack, origin=stack.origin, session=stack.cast["alice"].session)
    pings, most = masked(b"p" * 125, PING) * 1000, 0
    with contextlib.closing(connected), contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            while True:  # ends with the connection
                await asyncio.get_running_loop().sock_sendall(connected, pings)
                most = max(most, stack.memory_bytes("web") - before)
    assert most < 16_000_000


async def test_frames_behind_a_database_that_hangs_are_bounded_and_none_is_lost(stack: Stack) -> None:
    text = "x" * 30_000
    async with socket(stack, "alice") as alice:
        await alice.say(type="nothing")
        await alice.next("error")
        with contextlib.closing(sqlite3.connect(stack.database, isolation_level=None, timeout=20)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            ids = [await alice.send(text) for _ in range(20)]
            refused = []
            async with asyncio.timeout(8):  # a message waits for 20
                while len(refused) < 20 - 9:
                    refused.append(await alice.next("error", "accepted"))
                # A frame that is too long is not kept to be looked at later.
                await alice.say(type="send", id=str(uuid.uuid4()), text="x" * 200_000)
                assert await alice.refused() == "bad_frame"
            holder.execute("ROLLBACK")
        assert {(frame["type"], frame.get("code"), frame.get("retry_after_s")) for frame in refused} == {
            ("error", "rate_limited", 1)
        }
        num_taken = 20 - len(refused)
        told = [await alice.next("accepted", "error") for _ in range(num_taken)]
        assert {frame["type"] for frame in told} == {"accepted"}
        # In the order in which they came, and each was told one thing.
        assert [frame["id"] for frame in told + refused] == ids


async def test_frames_before_the_user_is_known_are_bounded(stack: Stack) -> None:
    """A key that was never used is noted as used, and that waits; what is sent meanwhile is kept only in part."""
    with contextlib.closing(sqlite3.connect(stack.database, isolation_level=None, timeout=20)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        async with socket(stack, "bob", by="key") as bob:
            for _ in range(20):
                await bob.send("x" * 30_000)
            async with asyncio.timeout(8):
                assert await bob.refused() == "rate_limited"
            holder.execute("ROLLBACK")
            assert (await bob.next("accepted"))["type"] == "accepted"
