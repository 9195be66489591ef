"""The chat socket: takes a client's frames, one after another, and tells it what it sent or resumed.

An edge: it holds no rules. Frames and pings are heard by a method call in the event loop (and counted, against floods);
one task works on frames, one after another, in database threads, and is there only while there are any; one writes what
the outbox holds. The token path, `on_frames`, is a method call too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from channels.consumer import AsyncConsumer

from chatproject.accounts import known
from chatproject.accounts.models import User
from chatproject.chat import identity, protocol, services, wire
from chatproject.chat.errors import Refusal, Refused
from chatproject.chat.flood import FloodGuard, Waiting
from chatproject.chat.identity import Identity, Unwelcome
from chatproject.chat.presence import begin_in_thread, get_presence, in_thread
from chatproject.chat.protocol import Inbound, Regenerate, Resume, Send
from chatproject.chat.transport import PING, Pong, Transport
from chatproject.contract.frames import Frame
from chatproject.contract.names import SUBPROTOCOL
from chatproject.generations import services as generation_services
from chatproject.generations.streaming.hub import get_hub
from chatproject.generations.streaming.outbox import Outbox
from chatproject.generations.streaming.reader import Queued, State

log = logging.getLogger(__name__)
DRAIN_LOOK_S: Final = 0.02

FLOOD_OR_SUBPROTOCOL: Final = 4400
SERVER_ERROR: Final = 1011
NOT_SIGNED_IN: Final = identity.NOT_SIGNED_IN
TOO_SLOW: Final = 4408


@dataclass(frozen=True, slots=True)
class _Begun:
    """A frame that is being worked on."""

    fields: dict[str, Any]
    rest: Callable[[], Awaitable[Any]]  # raises Refused and Unwelcome


class ChatConsumer(AsyncConsumer):
    """One socket. Belongs to the event loop; the database is only touched in threads."""

    identity: Identity

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Serve one connection to its end."""
        # Channels would give each socket a channel of its own and each message a thread hop; the hub has one for all.
        self._transport = Transport(send)
        self._hub = get_hub()
        self._outbox = Outbox(on_too_slow=lambda: self.close(TOO_SLOW), send_now=self._transport.send_now)
        self._waiting = Waiting()
        self._working: asyncio.Task[None] | None = None
        self._is_welcome = False
        self._attached: set[str] = set()
        self._flood = FloodGuard()
        self._close_code = 0
        self._left = asyncio.get_running_loop().create_future()
        await receive()  # websocket.connect
        is_called = self._transport.on_message(self._hear)
        tasks: list[asyncio.Task[None]] = []
        try:
            # Accepted before any slow work: daphne gives a handshake 5 s.
            offered = scope.get("subprotocols") or []
            chosen = SUBPROTOCOL if SUBPROTOCOL in offered else None
            await send({"type": "websocket.accept", "subprotocol": chosen})
            tasks.append(asyncio.ensure_future(self._write()))
            if offered and chosen is None:
                self.close(FLOOD_OR_SUBPROTOCOL)
            elif await self._identify(scope):
                tasks.append(asyncio.ensure_future(self._hub.join_user(self.identity.user_id, self)))
                self._is_welcome = True
                self._work_on()
            while not is_called and not self._left.done():
                self._hear(await receive())
            await self._left
        finally:
            await self._leave(tasks)

    # --- what the hub tells (see generations.streaming.reader)

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """Take the next frames of one generation."""
        for frame in frames:
            self._outbox.put(wire.frame(frame), generation_id=frame.generation_id)
        if frames and frames[-1].kind == "end":
            self._attached.discard(frames[-1].generation_id)

    def on_state(self, state: State) -> None:
        """Take the first word of a generation that was resumed."""
        self._outbox.put(wire.state(state), generation_id=state.generation_id)

    def on_queued(self, queued: Queued) -> None:
        """Take news of a generation that waits."""
        self._outbox.put(wire.queued(queued), generation_id=queued.generation_id)

    def on_notice(self, conversation: str | None, generation: str, status: str) -> None:
        """Take word of any generation of this user, from whichever socket it was sent."""
        self._outbox.put(wire.notice(conversation=conversation, generation=generation, status=status))

    def close(self, code: int) -> None:
        """End the socket after what is queued, or at once when the client is too slow to take it."""
        if not self._close_code:
            self._close_code = code
            self._outbox.close(forget=code == TOO_SLOW)

    # --- what the client says, and the work on it

    def _hear(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.disconnect":
            if not self._left.done():
                self._left.set_result(None)
            return
        if self._close_code:
            return
        try:
            self._let_in(message)
        except Refused as refused:
            fields: dict[str, Any] = {}
            with contextlib.suppress(Refused):
                fields = protocol.decode(message.get("text"))
            self._tell(refused, fields)
            if self._flood.is_flood:
                self.close(FLOOD_OR_SUBPROTOCOL)

    def _let_in(self, message: dict[str, Any]) -> None:
        wait_s = self._flood.take()
        if wait_s:
            raise Refused(Refusal.RATE_LIMITED, "Too many frames at once. Wait a moment.", retry_after_s=wait_s)
        if message["type"] == PING:
            self._outbox.put(Pong.to(message["bytes"]))
            return
        # Before it is kept: daphne lets through four times what is taken here.
        self._waiting.put(protocol.check_size(message.get("text")))
        self._work_on()

    def _work_on(self) -> None:
        # Begun here: a message is on its way to the database before the loop turns for the first time.
        if self._waiting and self._working is None and self._is_welcome and not self._left.done():
            self._working = asyncio.ensure_future(self._work(self._begin(self._waiting.take())))

    async def _work(self, begun: _Begun) -> None:
        try:
            await self._finish(begun)
            while self._waiting:
                await self._finish(self._begin(self._waiting.take()))
        finally:
            self._working = None

    async def _finish(self, begun: _Begun) -> None:
        try:
            await begun.rest()
            return
        except Refused as refused:
            error = refused
        except Unwelcome as unwelcome:
            self._waiting.clear()
            self.close(unwelcome.code)
            return
        except Exception:
            # Nothing of it was stored: each write is one transaction, and where its end is not known `services` asks.
            log.exception("a frame of type %.20r", begun.fields.get("type"))
            error = Refused(Refusal.UNAVAILABLE)
        self._tell(error, begun.fields)

    def _tell(self, refused: Refused, fields: dict[str, Any]) -> None:
        self._outbox.put(
            wire.error(refused, client_id=protocol.client_id_of(fields), generation=protocol.generation_of(fields))
        )

    async def _write(self) -> None:
        try:
            while (text := await self._outbox.take()) is not None:
                await self._transport.send(text)
                while not self._close_code and self._transport.is_behind():  # noqa: ASYNC110 - neither daphne nor the kernel tells when it was taken
                    await asyncio.sleep(DRAIN_LOOK_S)
        except Exception:
            # A socket that can write nothing must not look open: the client comes back and resumes.
            log.exception("a socket could not be written to")
            self.close(SERVER_ERROR)
        await self._transport.close(self._close_code)

    # --- what a client may ask

    def _begin(self, text: str | None) -> _Begun:
        fields: dict[str, Any] = {}
        try:
            fields = protocol.decode(text)
            return _Begun(fields, self._do(protocol.parse(fields)))
        except Exception as error:
            return _Begun(fields, functools.partial(_fail, error))

    def _do(self, frame: Inbound) -> Callable[[], Awaitable[Any]]:
        if isinstance(frame, Send):
            return self._send(frame, _send)
        if isinstance(frame, Regenerate):
            return self._send(frame, _regenerate)
        if isinstance(frame, Resume):
            return functools.partial(self._resume, frame)
        stop = in_thread(generation_services.stop)
        return functools.partial(stop, user_id=self.identity.user_id, generation_id=frame.generation)

    def _send(
        self, frame: Send | Regenerate, write: Callable[..., services.SendResult]
    ) -> Callable[[], Awaitable[None]]:
        # Attached before the commit, so that no frame is missed; held back, so that `accepted` comes first.
        generation_id = str(uuid.uuid4())
        self._outbox.hold(generation_id)

        def begin() -> Awaitable[services.SendResult]:
            self._hub.expect(generation_id, self)
            return begin_in_thread(write, self.identity.user_id, frame, generation_id, self._hub.channel)

        if self._hub.channel:
            return functools.partial(self._accept, frame, generation_id, begin())

        async def start_first() -> None:
            await self._hub.start()
            await self._accept(frame, generation_id, begin())

        return start_first

    async def _accept(
        self, frame: Send | Regenerate, generation_id: str, writing: Awaitable[services.SendResult]
    ) -> None:
        is_mine = False
        try:
            result = await writing
            is_mine = result.generation_id == generation_id
        finally:
            if not is_mine:
                self._hub.detach(generation_id, self)
                self._outbox.drop(generation_id)
        told = wire.accepted(
            client_id=frame.id, conversation=result.conversation_id, message=result.message_id,
            generation=result.generation_id, title=result.title, answer=result.answer_id,
        )  # fmt: skip
        if is_mine:
            self._attached.add(generation_id)
            self._outbox.release(generation_id, told)
            return
        # A retry, perhaps over a new socket: the same answer, told from its beginning unless it is being told here.
        self._outbox.put(told)
        if result.generation_id not in self._attached:
            await self._attach(result.generation_id, after=0)

    async def _resume(self, frame: Resume) -> None:
        if self._outbox.is_full:
            raise Refused(Refusal.RATE_LIMITED, "Read what was sent first, then resume.", retry_after_s=1)
        await self._attach(frame.generation, after=frame.after)

    async def _attach(self, generation_id: str, *, after: int) -> None:
        was_attached = generation_id in self._attached
        self._attached.add(generation_id)
        try:
            await self._hub.attach(generation_id, self, after=after, owner_id=self.identity.user_id)
        except Exception as error:
            if isinstance(error, Refused) or not was_attached:  # else it goes on as it was
                self._attached.discard(generation_id)
            raise

    # --- coming and going

    async def _identify(self, scope: dict[str, Any]) -> bool:
        try:
            self.identity = await get_presence().identify(scope)
            get_presence().join(self)
        except Unwelcome as unwelcome:
            self.close(unwelcome.code)
            return False
        except Exception:
            log.exception("a socket could not be identified")
            self.close(SERVER_ERROR)
            return False
        return True

    async def _leave(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        if self._working is not None:
            tasks = [*tasks, self._working]
        for task in tasks:
            task.cancel()
        self._outbox.close(forget=True)
        self._transport.on_message(_ignore)  # and it can be forgotten
        self._hub.detach_all(self)
        if hasattr(self, "identity"):
            self._hub.leave_user(self.identity.user_id, self)
            get_presence().leave(self)
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        # What was under way may have attached or joined once more while it ended.
        self._hub.detach_all(self)
        if hasattr(self, "identity"):
            self._hub.leave_user(self.identity.user_id, self)


class NoSuchSocket(AsyncConsumer):
    """Answers every other WebSocket path: without it Channels raises and daphne logs a traceback per visitor."""

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Refuse the handshake."""
        await receive()
        await send({"type": "websocket.close"})


async def _fail(error: Exception) -> None:
    raise error


def _ignore(message: dict[str, Any]) -> None: ...


def _send(user_id: str, frame: Send, generation_id: str, watcher: str) -> services.SendResult:
    user = known.last_seen(user_id)
    if user is not None:
        sent = services.try_send(user=user, frame=frame, generation_id=generation_id, watcher=watcher)
        if sent is not None:
            return sent
    return services.send(
        user=_user(user_id), frame=frame, generation_id=generation_id, watcher=watcher, step_by_step=user is not None
    )


def _regenerate(user_id: str, frame: Regenerate, generation_id: str, watcher: str) -> services.SendResult:
    return services.regenerate(user=_user(user_id), frame=frame, generation_id=generation_id, watcher=watcher)


def _user(user_id: str) -> User:
    # A plan or a ban counts from the next message on.
    user = known.read(user_id)
    if user is None or not user.is_active:
        raise Unwelcome(identity.NOT_SIGNED_IN if user is None else identity.MAY_NOT_CHAT, "Sign in again.")
    return user
