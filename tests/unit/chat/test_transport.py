"""A frame is written at once and whole, in order, whatever the kernel takes of it; and not to who does not read."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from chatproject.chat.transport import MOST_UNACKNOWLEDGED, PING, Pong, Transport


class Twisted:
    """Twisted's transport as far as ours looks into it, over a real socket: what it is given waits in its buffer."""

    offset = 0

    def __init__(self, handle: socket.socket) -> None:
        self.dataBuffer = b""
        self._tempDataLen = 0
        self._handle = handle

    def getHandle(self) -> socket.socket:
        return self._handle

    def write(self, data: bytes) -> None:
        self.dataBuffer += data


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    server.setblocking(False)
    yield server, client
    for each in (server, client, listener):
        each.close()


def open_transport(server: socket.socket) -> tuple[Transport, Twisted, Any]:
    twisted = Twisted(server)
    protocol = SimpleNamespace(transport=twisted, state=3, send_queue=[], _perMessageCompress=None)
    return Transport(functools.partial(lambda protocol, message: None, protocol)), twisted, protocol


def read(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += client.recv(size - len(found))
    return found


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 300_000])
def test_a_frame_has_the_header_of_its_size(ends: tuple[socket.socket, socket.socket], size: int) -> None:
    server, client = ends
    transport, twisted, _ = open_transport(server)
    text = "ä" * (size // 2) + "x" * (size % 2)
    assert transport.send_now(text)
    extended = 0 if size < 126 else 2 if size < 1 << 16 else 8
    from_kernel = read(client, 2 + extended + size - len(twisted.dataBuffer))
    frame = from_kernel + twisted.dataBuffer
    assert frame[0] == 0x81
    assert frame[1] == (size if not extended else 126 if extended == 2 else 127)
    assert extended == 0 or int.from_bytes(frame[2 : 2 + extended], "big") == size
    assert frame[2 + extended :].decode() == text


def test_what_comes_behind_a_buffered_rest_waits_behind_it(ends: tuple[socket.socket, socket.socket]) -> None:
    server, _ = ends
    transport, twisted, _ = open_transport(server)
    twisted.dataBuffer = b"rest"
    assert transport.send_now("next")
    assert twisted.dataBuffer == b"rest\x81\x04next"


def test_a_client_that_does_not_read_is_sent_no_more_until_it_does(ends: tuple[socket.socket, socket.socket]) -> None:
    server, client = ends
    transport, twisted, _ = open_transport(server)
    twisted.dataBuffer = bytes(MOST_UNACKNOWLEDGED + 1)
    transport._unacknowledged = MOST_UNACKNOWLEDGED + 1  # as after that much was sent
    assert transport.is_behind()
    assert not transport.send_now("no")
    twisted.dataBuffer = b""  # Twisted got rid of it
    assert transport.send_now("yes")
    assert read(client, 5) == b"\x81\x03yes"


def test_nothing_is_written_past_a_close_frame(ends: tuple[socket.socket, socket.socket]) -> None:
    server, _ = ends
    transport, twisted, protocol = open_transport(server)
    protocol.state = 2  # closing
    assert not transport.send_now("late")
    assert not twisted.dataBuffer


def test_under_another_server_its_own_send_is_used() -> None:
    async def send(message: dict[str, Any]) -> None: ...

    assert not Transport(send).send_now("x")


def test_what_daphne_receives_is_heard_at_once(ends: tuple[socket.socket, socket.socket]) -> None:
    transport, _, protocol = open_transport(ends[0])
    heard: list[dict[str, Any]] = []
    assert not transport.on_message(heard.append)  # a server without daphne's queue
    protocol.application_queue = None
    assert transport.on_message(heard.append)
    protocol.application_queue.put_nowait({"type": "websocket.receive", "text": "x"})
    protocol.onPing(b"p")
    assert heard == [{"type": "websocket.receive", "text": "x"}, {"type": PING, "bytes": b"p"}]


def test_a_ping_is_answered_byte_for_byte_and_not_to_who_does_not_read(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    server, client = ends
    transport, twisted, _ = open_transport(server)
    payload = bytes(range(131, 256))
    assert transport.send_now(Pong.to(payload))
    assert read(client, 127) == bytes((0x8A, 125)) + payload
    twisted.dataBuffer = bytes(MOST_UNACKNOWLEDGED + 1)
    transport._unacknowledged = MOST_UNACKNOWLEDGED + 1
    assert not transport.send_now(Pong.to(payload))
