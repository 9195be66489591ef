"""What ASGI has no words for: pings, frames heard and written at once, what is not acknowledged, closing below 3000.

Knows daphne, autobahn, Twisted and TCP, no frames of ours. daphne takes all it is given and buffers without bound, so
we look where the bytes are: Twisted's buffer, and the kernel's send queue (TIOCOUTQ: not acknowledged by the other
side's TCP). Under another server, or TLS in daphne, there is nothing to see: its own waiting `send` is the bound.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import struct
import termios
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

AsgiSend = Callable[[dict[str, Any]], Awaitable[None]]

MOST_UNACKNOWLEDGED: Final = 64 * 1024  # bytes; whoever has more waiting is not sent more
PING: Final = "websocket.ping"  # the type of a message of ours, beside ASGI's: a client's ping is in its "bytes"
_OPEN: Final = 3  # autobahn's STATE_OPEN
# Whole messages, not masked, as servers send.
_TEXT: Final = 0x81
_PONG: Final = 0x8A


class Pong(str):
    """The answer to a ping, a character for each of its bytes: it waits among the texts, and is bounded with them."""

    __slots__ = ()

    @classmethod
    def to(cls, ping: bytes) -> Pong:
        """Return what answers a ping."""
        return cls(ping, "latin-1")


class Transport:
    """One accepted socket's way out. Belongs to the event loop."""

    def __init__(self, send: AsgiSend) -> None:
        self._send = send
        # daphne's `send` is partial(server.handle_reply, protocol).
        self._protocol: Any = send.args[0] if isinstance(send, functools.partial) and send.args else None
        twisted = getattr(self._protocol, "transport", None)
        self._twisted: Any = twisted if hasattr(twisted, "dataBuffer") else None
        # Compressed messages would need autobahn's state; daphne offers no compression.
        self._is_plain = self._twisted is not None and getattr(self._protocol, "_perMessageCompress", None) is None
        self._unacknowledged = 0  # at most: as last seen, and what was sent since

    def on_message(self, hear: Callable[[dict[str, Any]], None]) -> bool:
        """From now on ``hear`` every ASGI message and PING as it comes; False where a server has another way: receive.

        Call it before the handshake is accepted, when no message can have come. A queue and a task in between take as
        long as the rest of the way from the socket. A ping would be answered by autobahn, past all bounds.
        """
        if not hasattr(self._protocol, "application_queue"):
            return False
        self._protocol.application_queue = ear = _Ear(hear)
        self._protocol.onPing = ear.hear_ping
        return True

    def send_now(self, text: str) -> bool:
        """Write one text frame, of any size, or a Pong before returning; False when nothing was written: `send` it.

        Straight into the kernel while nothing is before it: most of what a frame costs is daphne, autobahn and Twisted.
        """
        if not self._is_plain or self._protocol.state != _OPEN or self._protocol.send_queue or self.is_behind():
            return False
        frame = _framed(text)
        self._unacknowledged += len(frame)
        twisted, num_sent = self._twisted, 0
        if not self._num_buffered():
            try:
                num_sent = twisted.getHandle().send(frame)
            except OSError:  # full, or lost: Twisted waits, or finds out
                num_sent = 0
        if num_sent < len(frame):
            twisted.write(frame[num_sent:])
        return True

    async def send(self, text: str) -> None:
        """Send one text frame, of any size, or a Pong."""
        if self.send_now(text):
            return
        self._unacknowledged += len(text)
        if isinstance(text, Pong):
            self._protocol.sendPong(text.encode("latin-1"))
            return
        with self._no_limit():
            await self._send({"type": "websocket.send", "text": text})

    async def close(self, code: int) -> None:
        """Send the close frame."""
        send_close_frame = getattr(self._protocol, "sendCloseFrame", None)
        if code < 3000 and send_close_frame is not None:
            # autobahn refuses 1011 and 1012 from an application, though servers are who they are made for.
            send_close_frame(code=code)
        else:
            await self._send({"type": "websocket.close", "code": code})

    def is_behind(self) -> bool:
        """Whether the client has not acknowledged more than MOST_UNACKNOWLEDGED bytes."""
        if self._unacknowledged > MOST_UNACKNOWLEDGED:  # only then is it worth the system call
            self._unacknowledged = self.num_unacknowledged()
        return self._unacknowledged > MOST_UNACKNOWLEDGED

    @contextlib.contextmanager
    def _no_limit(self) -> Iterator[None]:
        """Lift autobahn's limit of received messages, which it applies to sent ones too: an answer may be longer.

        daphne's `send` does not wait, so nothing is received meanwhile.
        """
        limit = getattr(self._protocol, "maxMessagePayloadSize", None)
        if not limit:
            yield
            return
        self._protocol.maxMessagePayloadSize = 0
        try:
            yield
        finally:
            self._protocol.maxMessagePayloadSize = limit

    def num_unacknowledged(self) -> int:
        """Return how many sent bytes the client's side has not acknowledged; 0 where that cannot be seen."""
        if self._twisted is None:
            return 0
        try:
            queued = struct.unpack("i", fcntl.ioctl(self._twisted.getHandle().fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
        except (OSError, ValueError, AttributeError):
            queued = 0  # closed meanwhile
        return int(self._num_buffered() + queued)

    def _num_buffered(self) -> int:
        return int(len(self._twisted.dataBuffer) - self._twisted.offset + self._twisted._tempDataLen)


class _Ear:
    """What daphne takes for the queue of its application."""

    __slots__ = ("put_nowait",)

    def __init__(self, hear: Callable[[dict[str, Any]], None]) -> None:
        self.put_nowait = hear

    def hear_ping(self, payload: bytes) -> None:
        """Stand in for what autobahn calls at a ping."""
        self.put_nowait({"type": PING, "bytes": payload})


def _framed(text: str) -> bytes:
    if type(text) is Pong:
        return bytes((_PONG, len(text))) + text.encode("latin-1")
    payload = text.encode("utf-8")
    return _header(len(payload)) + payload


def _header(size: int) -> bytes:
    if size < 126:
        return bytes((_TEXT, size))
    if size < 1 << 16:
        return bytes((_TEXT, 126)) + size.to_bytes(2, "big")
    return bytes((_TEXT, 127)) + size.to_bytes(8, "big")
