"""A client of the chat socket for the tests: connects as one of the cast, and waits for the frame it wants."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket as sockets_
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

from tests.integration.stack import Stack

WAIT_S = 60  # a busy machine; nothing here is slow by itself

Frame = dict[str, Any]


class Client:
    """One socket. Every frame that came is kept in ``seen``."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.seen: list[Frame] = []

    async def say(self, **fields: Any) -> None:
        await self.connection.send(json.dumps(fields))

    async def send(self, text: str = "hello", *, max_tokens: int = 8, **fields: Any) -> str:
        """Send a message; return its client id."""
        client_id = str(uuid.uuid4())
        params = {"max_tokens": max_tokens}
        await self.say(
            **{"type": "send", "id": client_id, "conversation": None, "text": text, "params": params} | fields
        )
        return client_id

    async def frame(self) -> Frame:
        async with asyncio.timeout(WAIT_S):
            frame: Frame = json.loads(await self.connection.recv())
        self.seen.append(frame)
        return frame

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        while not wanted(frame := await self.frame()):
            pass
        return frame

    async def next(self, *kinds: str) -> Frame:
        """Return the next frame of one of these types, past all others."""
        return await self.until(lambda frame: frame["type"] in kinds)

    async def refused(self) -> str:
        """Return the code of the next error."""
        code: str = (await self.next("error"))["code"]
        return code

    async def closed(self) -> int | None:
        """Wait for the close; return its code."""
        async with asyncio.timeout(WAIT_S):
            try:
                while True:
                    self.seen.append(json.loads(await self.connection.recv()))
            except websockets.ConnectionClosed as error:
                return error.rcvd.code if error.rcvd else None

    def of(self, generation: str) -> list[Frame]:
        """Return the numbered frames of one generation, in the order in which they came."""
        return [frame for frame in self.seen if frame.get("generation") == generation and "seq" in frame]


def whole_answer(frames: list[Frame]) -> str:
    """Assert that these are all frames of one answer, in order and without gap; return its text."""
    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
    assert frames[0]["type"] == "started"
    assert all(frame["type"] == "delta" for frame in frames[1:-1])
    text = ""
    for frame in frames[1:-1]:
        assert frame["at"] == len(text)
        text += frame["text"]
    assert frames[-1]["type"] == "finished"
    assert frames[-1]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    return text


@asynccontextmanager
async def socket(
    stack: Stack, who: str = "", *, origin: str | None = "", by: str = "session", **options: Any
) -> AsyncIterator[Client]:
    """Connect as ``who`` by session, key or ticket; ``""`` is nobody."""
    url, headers = stack.url, dict(options.pop("additional_headers", {}))
    if who and by == "session":
        headers["Cookie"] = f"sessionid={stack.cast[who].session}"
    elif who and by == "key":
        headers["Authorization"] = f"Bearer {stack.cast[who].key}"
    elif who:
        url += f"?ticket={stack.cast[who].ticket}"
    async with websockets.connect(
        url, origin=stack.origin if origin == "" else origin, additional_headers=headers, **options
    ) as connection:
        yield Client(connection)


async def bare(stack: Stack, *, origin: str, session: str, host: str = "") -> sockets_.socket:
    """Return a bare TCP connection after the handshake: it can claim any host, and read nothing."""
    connected = sockets_.socket()
    connected.setsockopt(sockets_.SOL_SOCKET, sockets_.SO_RCVBUF, 4096)
    connected.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connected, ("127.0.0.1", stack.port))
    lines = [
        "GET /ws/chat/ HTTP/1.1", f"Host: {host or f'127.0.0.1:{stack.port}'}", "Upgrade: websocket",
        "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Origin: {origin}", f"Cookie: sessionid={session}",
    ]  # fmt: skip
    await loop.sock_sendall(connected, ("\r\n".join(lines) + "\r\n\r\n").encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await loop.sock_recv(connected, 1)
    return connected


def masked(body: bytes, opcode: int = 1) -> bytes:
    """Return a frame, of text by default, as clients must send it; masked with zeros it reads as it is."""
    assert len(body) < 126
    return bytes([0x80 | opcode, 0x80 | len(body), 0, 0, 0, 0]) + body
