"""One HTTP request as its server holds it: an event stream leaves at its client's pace, and can be cut off.

daphne takes all it is given and buffers without bound (see chat.transport), so who sends an event stream waits here
until most of it was acknowledged. Knows ASGI and Twisted, no dialect.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final, cast

from django.http import HttpRequest

from chatproject.chat.transport import MOST_UNACKNOWLEDGED, AsgiSend, Transport

LOOK_S: Final = 0.02
STALLED_S: Final = 30.0  # without a byte acknowledged, the client is taken for gone
_KEY: Final = "chat.connection"
_Application = Callable[[dict[str, Any], Callable[..., Any], AsgiSend], Awaitable[None]]


class Connection:
    """Belongs to the event loop."""

    def __init__(self, send: AsgiSend, *, stalled_s: float = STALLED_S) -> None:
        self._send = send
        self._stalled_s = stalled_s
        self._transport = Transport(send)
        # daphne's `send` is partial(server.handle_reply, protocol).
        protocol = send.args[0] if isinstance(send, functools.partial) and send.args else None
        self._twisted: Any = getattr(protocol, "transport", None)
        self._is_stream = False
        self._unacknowledged = 0  # at most: as last seen, and what was sent since
        self._at_end = ExitStack()

    def on_end(self, work: Callable[[], Any]) -> None:
        """Call ``work`` when the request is over, however it ends: also where its stream was never begun."""
        self._at_end.callback(work)

    def end(self) -> None:
        """Do what was to be done at the end."""
        self._at_end.close()

    async def send(self, message: dict[str, Any]) -> None:
        """Send an ASGI message; in an event stream, return when the client has taken most of it."""
        if message["type"] == "http.response.start":
            self._is_stream = _is_event_stream(message)
        await self._send(message)
        if self._is_stream and message.get("more_body"):
            self._unacknowledged += len(message["body"])
            if self._unacknowledged > MOST_UNACKNOWLEDGED:  # only then is it worth the system call
                await self._drain()

    def cut(self) -> None:
        """End the connection at once, with all that was not taken; nothing happens under a server that has no way."""
        abort = getattr(self._twisted, "abortConnection", None)
        if abort is not None:
            abort()

    async def _drain(self) -> None:
        least, since = self._transport.num_unacknowledged(), time.monotonic()
        while (waiting := self._transport.num_unacknowledged()) > MOST_UNACKNOWLEDGED:
            if waiting < least:
                least, since = waiting, time.monotonic()
            elif time.monotonic() - since > self._stalled_s:
                self.cut()
                break
            await asyncio.sleep(LOOK_S)
        self._unacknowledged = waiting


def connected(application: Callable[..., Awaitable[None]]) -> _Application:
    """Return the HTTP application with a `Connection` for each of its requests."""

    async def serve(scope: dict[str, Any], receive: Callable[..., Any], send: AsgiSend) -> None:
        connection = Connection(send)
        try:
            await application({**scope, _KEY: connection}, receive, connection.send)
        finally:
            connection.end()

    return serve


def connection_of(request: HttpRequest) -> Connection:
    """Return the connection of a request that came through `connected`."""
    found: Connection = cast(Any, request).scope[_KEY]
    return found


def _is_event_stream(start: Mapping[str, Any]) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"]
    )
