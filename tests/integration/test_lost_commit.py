"""A connection to PostgreSQL that is lost in a COMMIT: the message counts once, and its sender is told the truth."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket as sockets_
import struct
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from tests.integration.sockets import Client, Frame, socket, whole_answer
from tests.integration.stack import Stack, running
from tests.servers import postgresql_server, redis_server

pytestmark = [pytest.mark.needs("redis", "postgresql"), pytest.mark.django_db(databases=[])]
SYNC = b"S\x00\x00\x00\x04"
READY = b"Z\x00\x00\x00\x05I"  # idle: no transaction is open


class Thief:
    """A proxy before PostgreSQL that lets all pass, but for one transaction that it was told of.

    ``lose``: the server has committed, and its answer is lost. ``delay``: the client is cut off first, and the server
    gets what it was sent ``delay_s`` later. ``vanish``: as ``lose``, and then nobody gets through until `come_back`.
    """

    def __init__(self, url: str) -> None:
        self._address = (urlsplit(url).hostname, urlsplit(url).port)
        self._listener = sockets_.create_server(("127.0.0.1", 0))
        self.url = url.replace(f":{self._address[1]}/", f":{self._listener.getsockname()[1]}/")
        self.num_stolen = 0
        self.delay_s = 1.0
        self.is_delivered = threading.Event()  # all that was stolen
        self._is_away = False
        self._clients: set[sockets_.socket] = set()
        self._how, self._mark, self._trigger = "", b"", b""
        self._start(self._serve)

    def steal(self, how: str, *, of: str, at: bytes) -> None:
        """Do ``how`` to the first connection that was sent ``of``, when it is sent ``at``."""
        self.is_delivered.clear()
        self._mark, self._trigger, self._how = of.encode(), at, how

    def come_back(self) -> None:
        """Let everybody through again."""
        self._is_away = False

    def close(self) -> None:
        """Take no new connection."""
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_away:
                    client.close()
                    continue
                self._clients.add(client)
                server = sockets_.create_connection(self._address)
                is_stolen = threading.Event()
                self._start(self._to_server, client, server, is_stolen)
                self._start(self._to_client, client, server, is_stolen)

    def _to_server(self, client: sockets_.socket, server: sockets_.socket, is_stolen: threading.Event) -> None:
        is_marked, held = False, b""
        with contextlib.suppress(OSError), contextlib.closing(server):
            while data := client.recv(65536):
                is_marked |= bool(self._how) and self._mark in data
                if held or (is_marked and self._how and self._trigger in data):
                    is_stolen.set()
                    if self._how == "vanish":
                        self._is_away = True
                    if self._how != "delay":
                        self._take()
                    else:
                        held += data
                        if not held.endswith((SYNC, b"COMMIT\0")):
                            continue
                        self._take()
                        _reset(client)
                        time.sleep(self.delay_s)
                        server.sendall(held)
                        server.recv(65536)
                        self.is_delivered.set()
                        return
                server.sendall(data)

    def _to_client(self, client: sockets_.socket, server: sockets_.socket, is_stolen: threading.Event) -> None:
        with contextlib.suppress(OSError), contextlib.closing(client):
            while data := server.recv(65536):
                if not is_stolen.is_set():
                    client.sendall(data)
                elif data.endswith(READY):
                    for each in list(self._clients) if self._is_away else [client]:
                        _reset(each)
                    self.is_delivered.set()
                    return

    def _take(self) -> None:
        self._how = ""
        self.num_stolen += 1

    def _start(self, run: object, *args: object) -> None:
        threading.Thread(target=run, args=args, daemon=True).start()  # type: ignore[arg-type]


def _reset(connection: sockets_.socket) -> None:
    # Closed without lingering, a connection ends with a reset.
    with contextlib.suppress(OSError):  # it has ended already
        connection.setsockopt(sockets_.SOL_SOCKET, sockets_.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(sockets_.SHUT_RD)
    connection.close()


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    with postgresql_server() as url:
        yield url


@pytest.fixture(scope="module")
def thief(database_url: str) -> Iterator[Thief]:
    thief = Thief(database_url)
    yield thief
    thief.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, thief: Thief) -> Iterator[Stack]:
    directory = Path(tmp_path_factory.mktemp("lost-commit"))
    with redis_server() as url, running(directory, url, DATABASE_URL=thief.url) as stack:
        yield stack


async def ask(client: Client, **fields: object) -> Frame:
    await client.send("hello", **fields)  # type: ignore[arg-type]
    accepted = await client.next("accepted")
    await client.next("finished")
    return accepted


def stored(url: str, client_id: str) -> tuple[int, int]:
    """Return how many generations there are of a message, and how many messages of its conversation."""
    with psycopg.connect(url) as database:
        found = database.execute(
            "SELECT count(DISTINCT g.id), count(m.id) FROM generations_generation g"
            " LEFT JOIN chat_message m ON m.conversation_id = g.thread WHERE g.client_id = %s",
            (client_id,),
        ).fetchone()
    assert found is not None
    return found


@pytest.mark.parametrize("how", ["lose", "delay"])
@pytest.mark.parametrize("who", ["alice", "bob"])
async def test_message_is_accepted_once_and_answered(
    stack: Stack, thief: Thief, database_url: str, who: str, how: str
) -> None:
    client_id, num_stolen = str(uuid.uuid4()), thief.num_stolen
    async with socket(stack, who) as client:
        if who == "alice":  # whom the process has seen, so that it is accepted another way than Bob's first
            await ask(client)
        thief.steal(how, of=client_id, at=client_id.encode())
        await client.send("hello", id=client_id)
        told = await client.next("accepted", "error")
        assert (told["type"], told.get("id")) == ("accepted", client_id)
        await client.next("finished")
        whole_answer(client.of(told["generation"]))
        await client.send("hello", id=client_id)
        assert await client.next("accepted", "error") == told
    assert thief.num_stolen == num_stolen + 1
    assert await asyncio.to_thread(thief.is_delivered.wait, 20)
    assert stored(database_url, client_id) == (1, 2)


@pytest.mark.parametrize("how", ["lose", "delay"])
async def test_another_answer_is_accepted_once_and_told(
    stack: Stack, thief: Thief, database_url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a second try waits for the locks that the first one holds at the server.
    monkeypatch.setattr(thief, "delay_s", 3.0)
    client_id, num_stolen = str(uuid.uuid4()), thief.num_stolen
    async with socket(stack, "alice") as alice:
        first = await ask(alice)
        thief.steal(how, of=client_id, at=b"COMMIT")
        await alice.say(type="regenerate", id=client_id, generation=first["generation"], params={"max_tokens": 8})
        told = await alice.next("accepted", "error")
        assert (told["type"], told.get("id")) == ("accepted", client_id)
        await alice.next("finished")
        whole_answer(alice.of(told["generation"]))
    assert thief.num_stolen == num_stolen + 1
    assert await asyncio.to_thread(thief.is_delivered.wait, 20)
    assert stored(database_url, client_id) == (1, 3)


async def test_request_of_the_api_is_accepted_once(stack: Stack, thief: Thief, database_url: str) -> None:
    client_id = str(uuid.uuid4())
    request = urllib.request.Request(
        f"{stack.origin}/send-message",
        data=json.dumps({"message": "hello", "id": client_id, "params": {"max_tokens": 8}}).encode(),
        headers={"Authorization": f"Bearer {stack.cast['alice'].key}", "Content-Type": "application/json"},
    )
    thief.steal("lose", of=client_id, at=client_id.encode())
    with await asyncio.to_thread(urllib.request.urlopen, request, timeout=60) as answer:
        assert answer.status == 202
    assert await asyncio.to_thread(thief.is_delivered.wait, 20)
    assert stored(database_url, client_id) == (1, 2)


async def test_a_client_of_v1_is_told_to_come_again_under_its_key_and_counts_once(
    stack: Stack, thief: Thief, database_url: str
) -> None:
    key = str(uuid.uuid4())
    body = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    headers = {"Authorization": f"Bearer {stack.cast['alice'].key}", "Idempotency-Key": key}
    async with httpx.AsyncClient(base_url=stack.origin, headers=headers, timeout=60) as client:
        thief.steal("lose", of=key, at=key.encode())
        lost = await client.post("/v1/chat/completions", json=body)
        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "unavailable")
        assert int(lost.headers["retry-after"]) >= 1
        again = await client.post("/v1/chat/completions", json=body)
    assert again.status_code == 200
    assert stored(database_url, key)[0] == 1


async def test_while_the_database_stays_away_nobody_is_told_that_nothing_was_stored(
    stack: Stack, thief: Thief, database_url: str
) -> None:
    client_id = str(uuid.uuid4())
    async with socket(stack, "alice") as alice:
        await ask(alice)
        thief.steal("vanish", of=client_id, at=client_id.encode())
        try:
            await alice.send("hello", id=client_id)
            told = await alice.next("accepted", "error")
        finally:
            thief.come_back()
        assert (told["type"], told["code"], told["id"]) == ("error", "unavailable", client_id)
        assert told["unknown"] is True
        assert told["retry_after_s"] > 0
        assert stored(database_url, client_id) == (1, 2)
        await alice.send("hello", id=client_id)
        assert (await alice.next("accepted", "error"))["type"] == "accepted"
    assert stored(database_url, client_id) == (1, 2)
