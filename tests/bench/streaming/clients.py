"""Readers that cost little: asyncio protocols that parse what the server writes and note when each token came.

A token's text is the monotonic time in nanoseconds when it was made (`stamped/`); the first one also says how long the
engine took for it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

_STAMPS = re.compile(rb"\d{10,}")
_WAITED = re.compile(rb"\d{10,}\+(\d+) ")
_FINISHED = re.compile(rb'"type": ?"finished"')
_REFUSED = re.compile(rb'"type": ?"(failed|error)"')


@dataclass(slots=True)
class Answer:
    """One answer as its reader saw it; times are monotonic nanoseconds."""

    asked_at: int
    frames: list[tuple[int, int, int, int]] = field(default_factory=list)  # arrival, oldest stamp, newest, tokens
    engine_us: int = 0  # until its first token
    problem: str = ""

    @property
    def first_ms(self) -> float:
        """Milliseconds from the question to the first token, less what the engine took."""
        return (self.frames[0][0] - self.asked_at) / 1e6 - self.engine_us / 1e3

    @property
    def tokens(self) -> int:
        """How many came."""
        return sum(count for *_, count in self.frames)


class Reader(asyncio.Protocol, ABC):
    """One connection; subclasses know the wire."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self._buffer = bytearray()
        self._done: asyncio.Future[None] | None = None
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """An answer that is open now has failed."""
        self.is_lost = True
        self._end("the connection was lost")

    def close(self) -> None:
        """Close it."""
        self.transport.close()

    async def ask(self, text: str, max_tokens: int) -> Answer:
        """Ask and hear the whole answer."""
        if self.is_lost:
            return Answer(asked_at=time.monotonic_ns(), problem="the connection was lost")
        self.answer = Answer(asked_at=time.monotonic_ns())
        self._done = asyncio.get_running_loop().create_future()
        self._put(text, max_tokens)
        await self._done
        return self.answer

    @abstractmethod
    def _put(self, text: str, max_tokens: int) -> None:
        """Write a question."""

    def _take(self, piece: bytes) -> None:
        stamps = _STAMPS.findall(piece, max(0, piece.rfind(b'"text"')))  # an id may look like a stamp
        if stamps and self.answer is not None:
            if not self.answer.frames and (waited := _WAITED.search(piece)):
                self.answer.engine_us = int(waited[1])
            self.answer.frames.append((time.monotonic_ns(), int(stamps[0]), int(stamps[-1]), len(stamps)))

    def _end(self, problem: str = "") -> None:
        if self.answer is not None and self._done is not None and not self._done.done():
            self.answer.problem = problem
            self._done.set_result(None)


class SocketReader(Reader):
    """A WebSocket: ours, or that of the usual recipe. Text frames only, as both send; pings are answered."""

    def __init__(self, path: str, key: str, message: Callable[[str, int], dict[str, object]]) -> None:
        super().__init__()
        self._path, self._key, self._message = path, key, message
        self._is_open = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, port: int, path: str, key: str, message: Callable[[str, int], dict[str, object]]) -> Self:
        """Connect and shake hands."""
        _, reader = await asyncio.get_running_loop().create_connection(
            lambda: cls(path, key, message), "127.0.0.1", port
        )
        await asyncio.wait_for(reader._is_open, 60)
        return reader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        super().connection_made(transport)
        key = base64.b64encode(os.urandom(16)).decode()
        authorization = f"Authorization: Bearer {self._key}\r\n" if self._key else ""
        self.transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{authorization}\r\n".encode()
        )

    def connection_lost(self, error: Exception | None) -> None:
        """A handshake that is open now has failed too."""
        super().connection_lost(error)
        if not self._is_open.done():
            self._is_open.set_exception(ConnectionError("no handshake"))

    def data_received(self, data: bytes) -> None:
        """Cut the frames out of the bytes."""
        buffer = self._buffer
        buffer += data
        if not self._is_open.done():
            head, found, rest = bytes(buffer).partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._is_open.set_exception(ConnectionError(head[:200].decode()))
                return
            self._is_open.set_result(None)
            buffer[:] = rest
        at = 0
        while len(buffer) - at >= 2:
            size, head_size = buffer[at + 1] & 127, 2
            if size == 126:
                head_size = 4
                size = int.from_bytes(buffer[at + 2 : at + 4], "big")
            elif size == 127:
                head_size = 10
                size = int.from_bytes(buffer[at + 2 : at + 10], "big")
            if len(buffer) - at < head_size + size:
                break
            self._frame(buffer[at] & 15, bytes(buffer[at + head_size : at + head_size + size]))
            at += head_size + size
        del buffer[:at]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == 9:
            self._write(10, payload)
        elif opcode == 8:
            self._end(f"closed with {int.from_bytes(payload[:2], 'big')}")
        elif payload.startswith((b'{"type":"delta"', b'{"type": "delta"')):
            self._take(payload)
        elif _FINISHED.search(payload):  # Ours says the type last. Quotes inside of a text are escaped.
            if b'"text"' in payload:  # the usual recipe's last token
                self._take(payload)
            self._end()
        elif _REFUSED.search(payload):
            self._end(payload.decode())

    def _put(self, text: str, max_tokens: int) -> None:
        self._write(1, json.dumps(self._message(text, max_tokens)).encode())

    def _write(self, opcode: int, payload: bytes) -> None:
        # Masked, as clients must, by zeros.
        size = len(payload)
        head = bytes((128 | opcode, 128 | size)) if size < 126 else bytes((128 | opcode, 254)) + size.to_bytes(2, "big")
        self.transport.write(head + bytes(4) + payload)


class EventReader(Reader):
    """Server-sent events, each answer by a POST on the same connection."""

    @classmethod
    async def connect(cls, port: int) -> Self:
        """Connect."""
        _, reader = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return reader

    def _put(self, text: str, max_tokens: int) -> None:
        body = json.dumps({"id": uuid.uuid4().hex, "text": text, "max_tokens": max_tokens}).encode()
        self.transport.write(
            b"POST /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    def data_received(self, data: bytes) -> None:
        """Cut the events out of the bytes; what chunked transfer adds is skipped by the way."""
        self._buffer += data
        *events, rest = bytes(self._buffer).split(b"\n\n")
        self._buffer[:] = rest
        for event in events:
            if b"[DONE]" in event:
                self._end()
            else:
                self._take(event)


def our_message(text: str, max_tokens: int) -> dict[str, object]:
    """Return a ``send`` frame."""
    return {
        "type": "send", "id": str(uuid.uuid4()), "conversation": None, "text": text,
        "params": {"max_tokens": max_tokens},
    }  # fmt: skip


def plain_message(text: str, max_tokens: int) -> dict[str, object]:
    """Return what the usual recipe takes."""
    return {"text": text, "max_tokens": max_tokens}
