"""Who reads a stream slowly is waited for, who reads nothing is cut off, and nobody is for a whole answer at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from chatproject.api.connection import Connection
from chatproject.api.errors import ApiError
from chatproject.api.inbox import Inbox
from chatproject.chat.transport import MOST_UNACKNOWLEDGED
from chatproject.contract.frames import Frame
from chatproject.generations.streaming.outbox import GRACE_S, LIMIT_BYTES, MOST_BYTES
from chatproject.generations.streaming.reader import State

ID = str(uuid.uuid4())
START = {
    "type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/event-stream; charset=utf-8")]
}  # fmt: skip


class Twisted:
    """Twisted's transport as far as ours looks into it, over a real socket; it writes all that the kernel takes."""

    offset = _tempDataLen = 0
    is_aborted = False

    def __init__(self, handle: socket.socket) -> None:
        self.dataBuffer = b""
        self._handle = handle

    def getHandle(self) -> socket.socket:
        return self._handle

    def write(self, data: bytes) -> None:
        self.dataBuffer += data
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.dataBuffer = self.dataBuffer[self._handle.send(self.dataBuffer) :]

    def abortConnection(self) -> None:
        self.is_aborted = True


@pytest.fixture
def ends() -> Iterator[tuple[Twisted, socket.socket]]:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    server.setblocking(False)
    yield Twisted(server), client
    for each in (server, client, listener):
        each.close()


def connection_over(twisted: Twisted, **options: Any) -> Connection:
    async def handle_reply(protocol: Any, message: dict[str, Any]) -> None:
        twisted.write(message.get("body", b""))

    protocol = SimpleNamespace(transport=twisted)
    return Connection(functools.partial(handle_reply, protocol), **options)


def chunk(size: int) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"x" * size, "more_body": True}


async def test_a_stream_goes_on_when_the_client_has_taken_it(ends: tuple[Twisted, socket.socket]) -> None:
    twisted, client = ends
    connection = connection_over(twisted)
    await connection.send(START)
    sending = asyncio.ensure_future(connection.send(chunk(300_000)))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(sending), 0.1)
    client.setblocking(False)
    num_read = 0
    while not sending.done():
        twisted.flush()
        num_read += len(await asyncio.get_running_loop().sock_recv(client, 1 << 16)) if num_read < 250_000 else 0
        await asyncio.sleep(0)
    assert num_read > 300_000 - MOST_UNACKNOWLEDGED - (1 << 16)
    assert not twisted.is_aborted


async def test_a_client_that_takes_nothing_is_cut_off(ends: tuple[Twisted, socket.socket]) -> None:
    twisted, _ = ends
    connection = connection_over(twisted, stalled_s=0.2)
    await connection.send(START)
    async with asyncio.timeout(20):
        await connection.send(chunk(300_000))
    assert twisted.is_aborted


async def test_a_page_is_not_waited_for(ends: tuple[Twisted, socket.socket]) -> None:
    twisted, _ = ends
    connection = connection_over(twisted)
    await connection.send({**START, "headers": [(b"Content-Type", b"text/html")]})
    async with asyncio.timeout(20):
        await connection.send(chunk(300_000))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def frames(num: int, size: int, *, first: int = 2) -> list[Frame]:
    return [Frame(ID, 1, first + n, "delta", n * size, "x" * size) for n in range(num)]


async def test_who_stays_behind_longer_than_the_grace_is_cut_off() -> None:
    clock, cut = Clock(), []
    inbox = Inbox(on_too_slow=lambda: cut.append(clock.now), clock=clock)
    inbox.on_frames(frames(2, LIMIT_BYTES))
    clock.now = GRACE_S - 1
    await inbox.take()
    await inbox.take()
    inbox.on_frames(frames(2, LIMIT_BYTES))  # it has taken all: the grace begins anew
    clock.now = 2 * GRACE_S - 2
    inbox.on_frames(frames(1, 1))
    assert not cut
    clock.now = 2 * GRACE_S
    inbox.on_frames(frames(1, 1))
    assert cut == [2 * GRACE_S]
    inbox.on_frames(frames(1, 1))
    with pytest.raises(ApiError, match="slowly"):
        await inbox.take()


async def test_a_whole_answer_at_once_is_taken_and_more_behind_it_is_not() -> None:
    cut: list[bool] = []
    inbox = Inbox(on_too_slow=lambda: cut.append(True), clock=Clock())
    inbox.on_state(State(generation_id=ID, thread=None, status="done", seq=2, text="x" * (MOST_BYTES + 1)))
    assert not cut
    inbox.on_frames(frames(1, 1))
    assert cut
