"""The chat socket: takes a client's frames, one after another, and tells it what it sent or resumed.

An edge: it holds no rules. Three tasks per socket: one reads (and counts, against floods), one does the work in
database threads, one writes what the outbox holds. The token path, `on_frames`, is a method call in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

from channels.consumer import AsyncConsumer

from chatproject.accounts import known
from chatproject.accounts.models import User
from chatproject.chat import identity, protocol, services, wire
from chatproject.chat.errors import Refusal, Refused
from chatproject.chat.flood import FloodGuard
from chatproject.chat.identity import Identity, Unwelcome
from chatproject.chat.presence import get_presence, in_thread
from chatproject.chat.protocol import Inbound, Regenerate, Resume, Send, Stop
from chatproject.chat.transport import Transport
from chatproject.contract.frames import Frame
from chatproject.contract.names import SUBPROTOCOL
from chatproject.generations import services as generation_services
from chatproject.generations.streaming.hub import get_hub
from chatproject.generations.streaming.outbox import Outbox
from chatproject.generations.streaming.reader import Queued, State
from chatproject.small_queue import SmallQueue

log = logging.getLogger(__name__)
DRAIN_LOOK_S: Final = 0.02

FLOOD_OR_SUBPROTOCOL: Final = 4400
SERVER_ERROR: Final = 1011
NOT_SIGNED_IN: Final = identity.NOT_SIGNED_IN
TOO_SLOW: Final = 4408
TOO_MANY: Final = 4429


class ChatConsumer(AsyncConsumer):
    """One socket. Belongs to the event loop; the database is only touched in threads."""

    identity: Identity

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Serve one connection to its end."""
        # Channels would give each socket a channel of its own and each message a thread hop; the hub has one for all.
        self._transport = Transport(send)
        self._hub = get_hub()
        self._outbox = Outbox(on_too_slow=lambda: self.close(TOO_SLOW), send_now=self._transport.send_now)
        self._inbox: SmallQueue[str | None] = SmallQueue()
        self._attached: set[str] = set()
        self._flood = FloodGuard()
        self._close_code = 0
        await receive()  # websocket.connect
        tasks: list[asyncio.Task[None]] = []
        try:
            # Accepted before any slow work: daphne gives a handshake 5 s.
            offered = scope.get("subprotocols") or []
            chosen = SUBPROTOCOL if SUBPROTOCOL in offered else None
            await send({"type": "websocket.accept", "subprotocol": chosen})
            tasks.append(asyncio.ensure_future(self._write()))
            if offered and chosen is None:
                self.close(FLOOD_OR_SUBPROTOCOL)
            elif await self._is_welcome(scope):
                tasks.append(asyncio.ensure_future(self._hub.join_user(self.identity.user_id, self)))
                tasks.append(asyncio.ensure_future(self._work()))
            await self._read(receive)
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

    # --- one task each

    async def _read(self, receive: Callable[..., Any]) -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            if self._close_code:
                continue
            wait_s = self._flood.take()
            if not wait_s:
                self._inbox.put(message.get("text"))
                continue
            limited = Refused(Refusal.RATE_LIMITED, "Too many frames at once. Wait a moment.", retry_after_s=wait_s)
            self._outbox.put(wire.error(limited))
            if self._flood.is_flood:
                self.close(FLOOD_OR_SUBPROTOCOL)

    async def _work(self) -> None:
        while True:
            text = await self._inbox.get()
            fields: dict[str, Any] = {}
            try:
                fields = protocol.decode(text)
                await self._do(protocol.parse(fields))
                continue
            except Refused as refused:
                error = refused
            except Unwelcome as unwelcome:
                self.close(unwelcome.code)
                return
            except Exception:
                # Nothing of it was stored: each write is one transaction.
                log.exception("a frame of type %.20r", fields.get("type"))
                error = Refused(Refusal.UNAVAILABLE)
            self._outbox.put(
                wire.error(error, client_id=protocol.client_id_of(fields), generation=protocol.generation_of(fields))
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

    async def _do(self, frame: Inbound) -> None:
        if isinstance(frame, Send):
            await self._accept(frame, _send)
        elif isinstance(frame, Regenerate):
            await self._accept(frame, _regenerate)
        elif isinstance(frame, Resume):
            await self._resume(frame)
        elif isinstance(frame, Stop):
            await in_thread(generation_services.stop)(user_id=self.identity.user_id, generation_id=frame.generation)

    async def _accept(self, frame: Send | Regenerate, write: Callable[..., services.SendResult]) -> None:
        # Attached before the commit, so that no frame is missed; held back, so that `accepted` comes first.
        generation_id = str(uuid.uuid4())
        self._outbox.hold(generation_id)
        is_mine = False
        try:
            await self._hub.attach(generation_id, self, after=None)
            result = await in_thread(write)(self.identity.user_id, frame, generation_id, self._hub.channel)
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

    async def _is_welcome(self, scope: dict[str, Any]) -> bool:
        try:
            self.identity = await get_presence().identify(scope)
        except Unwelcome as unwelcome:
            self.close(unwelcome.code)
            return False
        except Exception:
            log.exception("a socket could not be identified")
            self.close(SERVER_ERROR)
            return False
        if not get_presence().join(self):
            self.close(TOO_MANY)
            return False
        return True

    async def _leave(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        self._outbox.close(forget=True)
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
