"""Who may use the chat socket, for how long, and how much of it: every close code, over real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import statistics
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import websockets

from tests.integration.sockets import bare, masked, socket
from tests.integration.stack import Stack, running
from tests.servers import free_port, redis_server

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]
NUM_ACCEPTED = "SELECT count(*) FROM generations_generation"
FOUR_KEYS = """
from chatproject.accounts import keys
from chatproject.accounts.models import User
for name in "abcd":
    print(keys.create(user=User.objects.get(username="bob"), name=name)[1])
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = Path(tmp_path_factory.mktemp("access"))
    # A Redis of its own: what waits here for ever would fill the queue of others.
    with redis_server() as url, running(directory, url, with_worker=False, ALLOWED_HOSTS="chat.example") as stack:
        yield stack


async def is_served(stack: Stack, who: str, **options: Any) -> bool:
    async with socket(stack, who, **options) as client:
        await client.say(type="nothing")
        return await client.refused() == "bad_frame"


async def code_of(stack: Stack, who: str, **options: Any) -> int | None:
    async with socket(stack, who, **options) as client:
        return await client.closed()


async def new_keys(stack: Stack) -> list[str]:
    """Make four keys of Bob's."""
    return (await asyncio.to_thread(stack.python, FOUR_KEYS)).split()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_session_key_and_ticket_each_open_the_socket(stack: Stack) -> None:
    assert await is_served(stack, "alice")
    assert await is_served(stack, "alice", by="key", origin=None)
    assert await is_served(stack, "alice", by="ticket", origin=None)
    assert await is_served(stack, "alice", subprotocols=["other", "chat.v1"])


async def test_nobody_and_strangers_are_told_to_sign_in(stack: Stack) -> None:
    assert await code_of(stack, "") == 4401
    assert await code_of(stack, "", additional_headers={"Cookie": "sessionid=forged"}) == 4401
    assert await code_of(stack, "", additional_headers={"Authorization": "Bearer sk-chat-wrong"}) == 4401
    assert await code_of(stack, "", additional_headers={"Authorization": "Basic YTpi"}) == 4401
    async with websockets.connect(stack.url + "?ticket=forged") as connection:
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401


@pytest.mark.parametrize(
    "origin",
    [None, "null", "https://evil.example", "http://127.0.0.1:1", "https://127.0.0.1:{port}", "http://evil:{port}"],
)
async def test_page_of_another_origin_cannot_use_the_cookie(stack: Stack, origin: str | None) -> None:
    origin = origin and origin.format(port=stack.port)
    assert await code_of(stack, "alice", origin=origin) == 4403


async def test_page_is_served_under_every_allowed_host(stack: Stack) -> None:
    # As behind a port mapping: the page's origin is the host it was asked for.
    for host, is_ours in (("chat.example:9", True), ("evil.example:9", False)):
        connected = await bare(stack, origin=f"http://{host}", host=host, session=stack.cast["alice"].session)
        with contextlib.closing(connected):
            await asyncio.get_running_loop().sock_sendall(connected, masked(b"{}"))
            head = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connected, 4), 10)
            # A text frame, or the close frame with its code.
            assert (head[0] == 0x81) == is_ours
            assert is_ours or int.from_bytes(head[2:4], "big") == 4403


async def test_unknown_subprotocol_is_closed(stack: Stack) -> None:
    async with websockets.connect(stack.url, subprotocols=["chat.v2"], origin=stack.origin) as connection:  # type: ignore[list-item,arg-type]
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await connection.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4400


async def test_other_paths_are_refused(stack: Stack) -> None:
    with pytest.raises(websockets.InvalidStatus):
        await websockets.connect(stack.url + "elsewhere/")


async def test_socket_ends_when_its_right_ends(stack: Stack) -> None:
    """Logged out, key revoked, account switched off: each within seconds, and Alice stays."""
    async with (
        socket(stack, "alice") as alice, socket(stack, "bob") as session, socket(stack, "bob", by="key") as key,
        socket(stack, "charlie", by="ticket") as ticket,
    ):  # fmt: skip
        for each in (alice, session, key, ticket):
            await each.say(type="nothing")
            await each.next("error")
        stack.sql("DELETE FROM django_session WHERE session_key = ?", stack.cast["bob"].session)
        assert await session.closed() == 4401
        stack.sql("UPDATE accounts_apikey SET revoked_at = '2026-01-01' WHERE prefix = ?", stack.cast["bob"].key[:14])
        assert await key.closed() == 4401
        stack.sql("UPDATE accounts_user SET is_active = 0 WHERE username = 'charlie'")
        assert await ticket.closed() == 4403
        assert await code_of(stack, "charlie") == 4403
        stack.sql("UPDATE accounts_user SET is_active = 1 WHERE username = 'charlie'")
        await alice.say(type="nothing")
        assert await alice.refused() == "bad_frame"


async def test_right_that_ended_is_seen_within_two_seconds_of_any_look(stack: Stack) -> None:
    """Each right ends just after a look, as its end shows: the next look is as far away as one can be."""
    took_s = []
    async with AsyncExitStack() as open_:
        keys = await new_keys(stack)
        clients = [await open_.enter_async_context(socket(stack, additional_headers=bearer(key))) for key in keys]
        for client, key in zip(clients, keys, strict=True):
            await client.say(type="nothing")
            await client.next("error")
            stack.sql("UPDATE accounts_apikey SET revoked_at = '2026-01-01' WHERE prefix = ?", key[:14])
            began = asyncio.get_running_loop().time()
            assert await client.closed() == 4401
            took_s.append(asyncio.get_running_loop().time() - began)
    # The first may have been lucky.
    assert statistics.median(took_s[1:]) < 1.7


async def test_right_that_ended_is_seen_while_every_message_waits_for_the_database(stack: Stack) -> None:
    async with AsyncExitStack() as open_:
        senders = [await open_.enter_async_context(socket(stack, "alice")) for _ in range(24)]
        key, *_ = await new_keys(stack)
        bob = await open_.enter_async_context(socket(stack, additional_headers=bearer(key)))
        for client in (*senders, bob):
            await client.say(type="nothing")
            await client.next("error")
        with contextlib.closing(sqlite3.connect(stack.database, isolation_level=None, timeout=20)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            (num_before,) = holder.execute(NUM_ACCEPTED).fetchone()
            for sender in senders:
                await sender.send("patience")
            await asyncio.sleep(0.5)  # all database threads of the process have one
            holder.execute("DELETE FROM accounts_apikey WHERE prefix = ?", (key[:14],))
            holder.execute("COMMIT")
            holder.execute("BEGIN IMMEDIATE")  # again, before most of those that wait have had it
            (num_after,) = holder.execute(NUM_ACCEPTED).fetchone()
            async with asyncio.timeout(8):  # a message waits for 20
                assert await bob.closed() == 4401
            holder.execute("ROLLBACK")
        assert len(senders) - (num_after - num_before) > 8
        for sender in senders:
            assert (await sender.next("accepted", "error"))["type"] == "accepted"


async def test_flood_is_warned_then_closed(stack: Stack) -> None:
    async with socket(stack, "alice") as alice:
        with contextlib.suppress(websockets.ConnectionClosed):
            for _ in range(200):
                await alice.say(type="nothing")
        assert await alice.closed() == 4400
    codes = [frame["code"] for frame in alice.seen]
    assert codes.count("rate_limited") >= 30
    assert all(frame["retry_after_s"] > 0 for frame in alice.seen if frame["code"] == "rate_limited")


async def test_one_user_cannot_take_all_sockets(stack: Stack) -> None:
    async with AsyncExitStack() as open_:
        for _ in range(200):
            client = await open_.enter_async_context(socket(stack, "charlie"))
            # The handshake comes before the count: only an answer shows that this socket is counted in.
            await client.say(type="nothing")
            assert await client.refused() == "bad_frame"
        assert await code_of(stack, "charlie") == 4429
        assert await is_served(stack, "alice")


async def test_slow_accept_is_no_end(stack: Stack) -> None:
    """The database is held by somebody else for seconds: the message is not shown as ended before it began."""
    async with socket(stack, "alice") as alice:
        await alice.say(type="nothing")
        await alice.next("error")
        holder = sqlite3.connect(stack.database, isolation_level=None, timeout=20)
        holder.execute("BEGIN IMMEDIATE")
        await alice.send("patience")
        await asyncio.sleep(2.5)  # longer than the hub takes silence for a reason to look
        holder.execute("ROLLBACK")
        holder.close()
        accepted = await alice.next("accepted", "error")
        assert accepted["type"] == "accepted"
        queued = await alice.next("queued", "finished", "failed")
        assert (queued["type"], queued["reason"]) == ("queued", "no_worker")
        await alice.say(type="stop", generation=accepted["generation"])


LONG_ANSWER = """
from datetime import timedelta
from django.utils import timezone
from chatproject.accounts.models import User
from chatproject.generations.models import Generation
print(Generation.objects.create(
    user=User.objects.get(username="alice"), client_id="long", body_sha256="", model="demo", lane="interactive",
    request={}, status="done", expires_at=timezone.now(), answer="x" * 600_000, reason="stop", end_seq=3,
).id)
"""


async def test_reader_that_never_reads_is_cut_off(stack: Stack) -> None:
    """It asks for a long answer again and again and takes nothing: the process does not keep it all for it."""
    generation = stack.python(LONG_ANSWER).split()[-1]
    async with socket(stack, "alice") as alice:
        await alice.say(type="resume", generation=generation, after=0)
        assert len((await alice.next("state"))["text"]) == 600_000
        assert (await alice.next("finished"))["reason"] == "stop"
    before = stack.memory_bytes("web")
    connected = await bare(stack, origin=stack.origin, session=stack.cast["alice"].session)
    with contextlib.closing(connected), contextlib.suppress(ConnectionError):
        frame = json.dumps({"type": "resume", "generation": generation, "after": 0}).encode()
        most = 0
        async with asyncio.timeout(60):
            # Ends with the connection: what it never read is then reset.
            while True:
                await asyncio.get_running_loop().sock_sendall(connected, masked(frame))
                await asyncio.sleep(0.12)
                most = max(most, stack.memory_bytes("web") - before)
    assert most < 16_000_000


async def test_restart_says_1012_to_every_socket(stack: Stack) -> None:
    async with AsyncExitStack() as open_:
        clients = [await open_.enter_async_context(socket(stack, who)) for who in ("alice", "charlie") * 10]
        for client in clients:
            await client.say(type="nothing")
            await client.next("error")
        stack.processes["web"].terminate()
        codes = await asyncio.gather(*(client.closed() for client in clients))
    assert codes == [1012] * 20
    assert await asyncio.to_thread(stack.processes["web"].wait, 15) == 0
    stack.start("web")
    stack.wait_for_web()


async def test_who_comes_back_while_the_process_ends_is_told_so_and_not_to_wait(stack: Stack) -> None:
    """Sockets are closed over a while, and the process still listens: 4429 would keep the page away for 10 s."""
    codes: list[int | None] = []
    while not codes:  # the process may be gone before anybody is back
        async with AsyncExitStack() as open_:
            clients = [await open_.enter_async_context(socket(stack, "alice")) for _ in range(10)]
            for client in clients:
                await client.say(type="nothing")
                await client.next("error")
            stack.processes["web"].terminate()
            assert await clients[0].closed() == 1012
            with contextlib.suppress(OSError, websockets.InvalidHandshake, websockets.ConnectionClosed):
                while len(codes) < 30:
                    code = await code_of(stack, "alice")
                    if code is not None:  # None: the process ended meanwhile
                        codes.append(code)
        assert await asyncio.to_thread(stack.processes["web"].wait, 15) == 0
        stack.start("web")
        stack.wait_for_web()
    assert set(codes) == {1012}


async def test_message_is_accepted_while_redis_is_away(stack: Stack) -> None:
    stack.stop("web")
    stack.start("web", REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    stack.wait_for_web()
    async with socket(stack, "alice") as alice:
        await alice.send("is anybody there?")
        accepted = await alice.next("accepted", "error")
        assert accepted["type"] == "accepted"
        await alice.say(type="resume", generation=accepted["generation"], after=0)
        assert (await alice.next("state", "error"))["status"] == "waiting"
        await alice.say(type="stop", generation=accepted["generation"])
        await alice.say(type="nothing")
        assert await alice.refused() == "bad_frame"
