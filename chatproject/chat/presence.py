"""The open chat sockets of this process: whose they are, whether they are still welcome, and how they end.

A look asks for all of them at once, in one statement. Belongs to the event loop; knows sockets only as something with
an identity that can be closed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from types import FrameType
from typing import Any, Final, Protocol

from chatproject.batched import Batched
from chatproject.chat import identity as identities
from chatproject.chat.identity import Identity, Unwelcome
from chatproject.chat.rights import Rights
from chatproject.kept_connection import kept

log = logging.getLogger(__name__)
# Whoever may not stay is cut within 2 s: this, and two looks, as the first may just have missed it.
LOOK_S: Final = 0.5
DRAIN_S: Final = 1.5  # closings are spread over this, so that not everyone comes back at once
MAX_SOCKETS_PER_USER: Final = 200
RESTARTING: Final = 1012
TOO_MANY: Final = 4429
_THREADS: Final = ThreadPoolExecutor(max_workers=8, thread_name_prefix="chat-orm")
# Those eight may all wait for a lock; who was switched off must not stay for it.
_LOOKING: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chat-look")


def in_thread(work: Callable[..., Any], threads: Executor = _THREADS) -> Callable[..., Awaitable[Any]]:
    """Return ``work`` as a coroutine function that runs in one of this process's database threads."""

    async def run(*args: Any, **fields: Any) -> Any:
        call = functools.partial(_with_database, work, args, fields)
        return await asyncio.get_running_loop().run_in_executor(threads, call)

    return run


def begin_in_thread(work: Callable[..., Any], *args: Any, **fields: Any) -> asyncio.Future[Any]:
    """Begin ``work`` in one of this process's database threads at once, whenever its result is awaited."""
    # Channels' `database_sync_to_async` does this and much more for each message, of which sockets need nothing.
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(_THREADS, functools.partial(_with_database, work, args, fields))


def _with_database(work: Callable[..., Any], args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
    with kept():
        return work(*args, **fields)


class OpenSocket(Protocol):
    """What is counted, looked after and closed."""

    @property
    def identity(self) -> Identity:
        """Whose socket it is."""

    def close(self, code: int) -> None:
        """End it; returns at once."""


class Presence:
    """All sockets of one process. Every method belongs to its event loop."""

    def __init__(self, lost: Callable[[Collection[Identity]], dict[Identity, int]] | None = None) -> None:
        self._lost = in_thread(lost or Rights().lost, _LOOKING)
        # When another web process dies, all of its sockets come here in one moment.
        self._credentials = Batched(in_thread(identities.identify_all))
        self._sockets: dict[Identity, set[OpenSocket]] = {}
        self._per_user: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._is_draining = False

    async def identify(self, scope: Mapping[str, Any]) -> Identity:
        """Return who knocks. Raises Unwelcome, and django.db.Error when the database does not answer."""
        self._refuse_if_draining()
        shown = identities.present(scope)
        if isinstance(shown, Identity):
            return shown
        found = await self._credentials.get(shown)
        if not isinstance(found, Identity):
            raise found or Unwelcome(identities.NOT_SIGNED_IN, "Sign in again.")
        return found

    def join(self, socket: OpenSocket) -> None:
        """Count a socket in. Raises Unwelcome when its user has as many as one may have, or the process is to end."""
        self._refuse_if_draining()
        user_id = socket.identity.user_id
        if self._per_user[user_id] >= MAX_SOCKETS_PER_USER:
            raise Unwelcome(TOO_MANY, "Too many sockets are open. Close some.")
        self._per_user[user_id] += 1
        self._sockets.setdefault(socket.identity, set()).add(socket)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())

    def leave(self, socket: OpenSocket) -> None:
        """Count a socket out; nothing happens when it was not in."""
        alike = self._sockets.get(socket.identity, set())
        if socket not in alike:
            return
        alike.remove(socket)
        if not alike:
            del self._sockets[socket.identity]
        self._per_user[socket.identity.user_id] -= 1
        if not self._per_user[socket.identity.user_id]:
            del self._per_user[socket.identity.user_id]

    async def look(self) -> None:
        """Close the sockets of those who are not welcome any more."""
        gone = await self._lost(list(self._sockets)) if self._sockets else {}
        for identity, code in gone.items():
            for socket in list(self._sockets.get(identity, ())):
                socket.close(code)

    async def drain(self) -> None:
        """Close every socket with 1012, a few at a time; no new one is taken."""
        self._is_draining = True
        sockets = [socket for alike in self._sockets.values() for socket in alike]
        random.shuffle(sockets)
        for index, socket in enumerate(sockets):
            socket.close(RESTARTING)
            if index % 50 == 49 or index == len(sockets) - 1:
                await asyncio.sleep(DRAIN_S * 50 / max(50, len(sockets)) * random.uniform(0.1, 1.0))  # noqa: S311

    def drain_at_sigterm(self) -> None:
        """From now on SIGTERM drains first and then does what it did: daphne itself sends no close frame."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        before = signal.getsignal(signal.SIGTERM)

        async def drain_then_end() -> None:
            await self.drain()
            signal.signal(signal.SIGTERM, before)
            signal.raise_signal(signal.SIGTERM)

        def on_signal(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(lambda: asyncio.ensure_future(drain_then_end()))

        signal.signal(signal.SIGTERM, on_signal)

    def _refuse_if_draining(self) -> None:
        # The process still listens, and who was sent away comes back at once: not as one who opens too many.
        if self._is_draining:
            raise Unwelcome(RESTARTING, "This process ends. Come back in a moment.")

    async def _watch(self) -> None:
        while self._sockets:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception as error:
                # A database that is away is no reason to send everybody home.
                log.warning("nobody could be looked up: %r", error)


@functools.cache
def get_presence() -> Presence:
    """Return the process's presence, which from then on also takes care of SIGTERM."""
    presence = Presence()
    presence.drain_at_sigterm()
    return presence
