"""What ASGI has no words for: how much a client has not acknowledged, and closing with a code below 3000.

Knows daphne, autobahn, Twisted and TCP, no frames. daphne takes all it is given and buffers without bound, so we look
where the bytes are: Twisted's buffer, and the kernel's send queue (TIOCOUTQ: not acknowledged by the other side's TCP).
Under another server there is nothing to see, and its own waiting `send` is the bound.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import struct
import termios
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

AsgiSend = Callable[[dict[str, Any]], Awaitable[None]]


class Transport:
    """One accepted socket's way out. Belongs to the event loop."""

    def __init__(self, send: AsgiSend) -> None:
        self._send = send
        # daphne's `send` is partial(server.handle_reply, protocol).
        self._protocol: Any = send.args[0] if isinstance(send, functools.partial) and send.args else None
        twisted = getattr(self._protocol, "transport", None)
        self._twisted: Any = twisted if hasattr(twisted, "dataBuffer") else None

    async def send(self, text: str) -> None:
        """Send one text frame, of any size."""
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
        buffered = len(self._twisted.dataBuffer) - self._twisted.offset + self._twisted._tempDataLen
        try:
            queued = struct.unpack("i", fcntl.ioctl(self._twisted.getHandle().fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
        except (OSError, ValueError, AttributeError):
            queued = 0  # closed meanwhile
        return int(buffered + queued)
