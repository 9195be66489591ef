"""One per web process: takes the frames of all generations from one channel and gives them to the readers here.

The channel layer is fast and may lose anything; the log in Redis is the truth while a generation lives, the row in the
database afterwards. So: frames first, the log on a gap or a second of silence, the database when there is no log.
Everything here runs in one event loop and holds no socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

from channels.layers import get_channel_layer
from django import db

from chatproject import redis_client, remembered, service_clock
from chatproject.contract import frames as wire
from chatproject.contract import names
from chatproject.contract.errors import ContractError, Refusal
from chatproject.contract.frames import CHANNEL_MESSAGE_TYPE, Frame, Log
from chatproject.generations.announcer import NOTICE_TYPE, user_watch_key
from chatproject.generations.errors import Refused
from chatproject.generations.streaming.cursor import Cursor, Verdict
from chatproject.generations.streaming.places import Places
from chatproject.generations.streaming.reader import Reader, ReadStatus
from chatproject.generations.streaming.rows import in_database_thread
from chatproject.generations.streaming.stream import Stream
from chatproject.generations.streaming.truth import Truth, end_of_the_deleted, log_of_row
from chatproject.generations.streaming.watches import Watches
from chatproject.generations.warming import warm
from chatproject.redis_client import AWAY

log = logging.getLogger(__name__)
TICK_S: Final = 0.25
CLOCK_S: Final = 1.0  # the first message waits so long at most for Redis' time
SILENCE_S: Final = 1.0
WATCH_RENEW_S: Final = 20.0


class NoticeListener(Protocol):
    """A socket that wants to hear of all of its user's generations."""

    def on_notice(self, conversation: str | None, generation: str, status: str) -> None:
        """Take one notice; returns at once and never raises."""


class Hub:
    """Feeds the readers of one process. Every method belongs to the event loop that called `start` first."""

    def __init__(self) -> None:
        self.channel = ""
        self._streams: dict[str, Stream] = {}
        self._users: dict[str, set[NoticeListener]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._redis = redis_client.make_async_client()
        self._truth = Truth(self._redis)
        self._watches = Watches(self._redis)
        self._places = Places(self._redis, self._truth)
        self._layer: Any = get_channel_layer()
        self._started = asyncio.Lock()
        self._is_refreshing = False
        self.replacements = 0  # readers whose text had to be replaced

    async def start(self) -> None:
        """Open the channel and begin to listen; later calls return at once. Never raises for a Redis that is away."""
        async with self._started:
            if self.channel:
                return
            # Before the first message is accepted: its deadline is told in the service's time.
            await self._begin_clock()
            # A name of our own, so that it is known before Redis is: receiving subscribes, and again after a loss.
            self.channel = self._watches.channel = f"chat.web.{uuid.uuid4().hex}"
            self._spawn(in_database_thread(warm)())
            self._spawn(self._listen())
            self._spawn(self._tick())

    def expect(self, generation_id: str, reader: Reader) -> None:
        """Give ``reader`` the frames of a generation that it is just sending, so that nothing can have been missed.

        The request names this hub's channel, which it has once it was started.
        """
        self._stream(generation_id).readers.setdefault(reader, Cursor())

    async def attach(self, generation_id: str, reader: Reader, *, after: int, owner_id: str | None = None) -> None:
        """Give ``reader`` the state of a generation, then its frames past number ``after``.

        Raises Refused(bad_cursor, not_found); a generation of another than ``owner_id`` is not found. Without one, the
        caller has seen that it may be read.
        """
        await self.start()
        stream = self._stream(generation_id)
        # Counted, or another reader that comes or goes meanwhile drops the stream, and this one never hears a word.
        stream.num_resuming += 1
        try:
            await self._resume(stream, reader, after, owner_id)
        finally:
            stream.num_resuming -= 1
            self._drop_if_unread(stream)

    def _stream(self, generation_id: str) -> Stream:
        stream = self._streams.get(generation_id)
        if stream is None:
            stream = self._streams[generation_id] = Stream(generation_id, time.monotonic())
        return stream

    def detach(self, generation_id: str, reader: Reader) -> None:
        """Stop feeding ``reader``; nothing happens when it was not attached."""
        stream = self._streams.get(generation_id)
        if stream is not None:
            stream.readers.pop(reader, None)
            self._drop_if_unread(stream)

    def detach_all(self, reader: Reader) -> None:
        """Stop feeding ``reader`` anything."""
        for stream in [stream for stream in self._streams.values() if reader in stream.readers]:
            self.detach(stream.id, reader)

    async def join_user(self, user_id: str, listener: NoticeListener) -> None:
        """Let ``listener`` hear when a generation of the user is accepted or ends."""
        await self.start()
        is_first = user_id not in self._users
        self._users.setdefault(user_id, set()).add(listener)
        if is_first:
            with contextlib.suppress(*AWAY):
                await self._watches.keep([user_watch_key(user_id)])

    def leave_user(self, user_id: str, listener: NoticeListener) -> None:
        """Stop telling ``listener``."""
        listeners = self._users.get(user_id, set())
        listeners.discard(listener)
        if not listeners:
            self._users.pop(user_id, None)

    # --- live frames

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._layer.receive(self.channel)
                self._take(message)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.warning("the channel layer is away, the log serves meanwhile: %r", error)
                # A failed subscription stays in the layer's table: without this the next receive waits for nothing.
                self._layer.channels.pop(self.channel, None)
                await asyncio.sleep(0.5)

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("type") == NOTICE_TYPE:
            for listener in list(self._users.get(message["user"], ())):
                listener.on_notice(message["conversation"], message["generation"], message["status"])
        elif message.get("type") == CHANNEL_MESSAGE_TYPE:
            try:
                taken = wire.frames_of_message(message)
            except ContractError as error:
                log.warning("frames left out, the log has them: %s", error)
                return
            by_id: dict[str, list[Frame]] = {}
            for frame in taken:
                by_id.setdefault(frame.generation_id, []).append(frame)
            now = time.monotonic()
            for id_, group in by_id.items():
                stream = self._streams.get(id_)
                if stream is not None:
                    stream.heard_at = now
                    self._show(stream, group)

    def _show(self, stream: Stream, group: Sequence[Frame]) -> None:
        for reader, cursor in list(stream.readers.items()):
            shown: list[Frame] = []
            for frame in group:
                verdict = cursor.offer(frame)
                if verdict is Verdict.SHOW:
                    shown.append(frame)
                elif verdict is Verdict.ASK_LOG:
                    self._ask_log(stream)
                    break
            self._give(stream, reader, cursor, shown)

    def _give(self, stream: Stream, reader: Reader, cursor: Cursor, shown: Sequence[Frame]) -> None:
        if shown:
            reader.on_frames(shown)
        if cursor.is_ended:
            self.detach(stream.id, reader)

    # --- the log, then the database

    def _ask_log(self, stream: Stream) -> None:
        if stream.is_reading:
            stream.wants_log = True
        else:
            stream.is_reading = True
            self._spawn(self._read_log(stream))

    async def _read_log(self, stream: Stream) -> None:
        try:
            while stream.readers:
                stream.wants_log = False
                folded, is_terminal = await self._truth.of(stream)
                if folded is None:
                    self._tell_gone(stream)
                    return
                self._catch_up(stream, folded, with_end=folded.is_stored or is_terminal)
                stream.heard_at = time.monotonic()
                if not stream.wants_log:
                    return
        except (*AWAY, db.Error) as error:
            log.warning("neither log nor row of %s can be read now: %r", stream.id, error)
        except ContractError:
            log.exception("the log of %s", stream.id)
        finally:
            stream.is_reading = False

    def _tell_gone(self, stream: Stream) -> None:
        for reader, cursor in list(stream.readers.items()):
            reader.on_frames([end_of_the_deleted(stream.id, seq=cursor.seq + 1)])
            self.detach(stream.id, reader)

    def _catch_up(self, stream: Stream, folded: Log, *, with_end: bool) -> None:
        for reader, cursor in list(stream.readers.items()):
            fresh = cursor.catch_up(folded, with_end=with_end)
            if fresh is None:
                self.replacements += 1
                cursor.restart(folded)
                reader.on_state(stream.state(folded, status="running", text=folded.text))
                fresh = cursor.catch_up(folded, with_end=with_end) or []
            self._give(stream, reader, cursor, fresh)

    async def _resume(self, stream: Stream, reader: Reader, after: int, owner_id: str | None) -> None:
        row = await self._truth.row(stream.id)
        if row is None or (owner_id is not None and str(row.user_id) != owner_id):
            raise Refused(Refusal.NOT_FOUND)
        stream.readers.pop(reader, None)  # it may read already: what it is told from here on begins with the state
        stream.was_accepted = True
        stream.thread = str(row.thread) if row.thread else None
        await self._watches.watch_late(stream.id)
        try:
            folded = await self._truth.log(stream.id)
        except (*AWAY, ContractError) as error:
            log.warning("resume of %s without its log: %r", stream.id, error)
            folded = Log()
        cursor = Cursor()
        if row.is_terminal and not (folded.is_stored and folded.end is not None):
            # The log is gone: the state carries the whole text, and only the end frame follows.
            folded = log_of_row(row)
            cursor.restart(folded)
            reader.on_state(stream.state(folded, status=cast(ReadStatus, row.status), text=row.answer))
            self._give(stream, reader, cursor, cursor.catch_up(folded, with_end=True) or [])
            self._drop_if_unread(stream)
            return
        is_over = row.is_terminal or folded.is_stored
        last = folded.seq if is_over or folded.end is None else folded.seq - 1
        if folded.frames and after > last:
            raise Refused(Refusal.BAD_CURSOR)
        if folded.frames:
            cursor.seq, cursor.run = after, folded.run
            cursor.characters = sum(len(frame.text) for frame in folded.frames if frame.seq <= after)
        else:
            # Redis is away, or has just lost the log: what the reader has seen must not come again.
            cursor, last = Cursor.without_log(after), after
        status: ReadStatus = "running" if folded.frames or after else "waiting"
        if is_over and folded.end is not None:
            status = folded.end.status
        reader.on_state(stream.state(folded, status=status, seq=last))
        stream.readers[reader] = cursor
        if is_over and cursor.seq == folded.end_seq:
            self.detach(stream.id, reader)  # it has everything already
            return
        self._give(stream, reader, cursor, cursor.catch_up(folded, with_end=is_over) or [])

    # --- time

    async def _tick(self) -> None:
        renewed_at = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if remembered.is_any_due() and not self._is_refreshing:
                self._is_refreshing = True
                self._spawn(self._refresh_remembered())
            try:
                if now - renewed_at >= WATCH_RENEW_S:
                    await self._measure_clock()
                    await self._renew_watches()
                    renewed_at = now
                await self._look_at_silent(now)
            except asyncio.CancelledError:
                raise
            except AWAY as error:
                log.warning("Redis is away, sockets stay open: %r", error)
                await asyncio.sleep(0.5)
            except Exception:
                log.exception("hub")

    async def _refresh_remembered(self) -> None:
        try:
            await in_database_thread(remembered.refresh_used)()
        except db.Error as error:
            log.warning("plans and models are read when they are asked for: %r", error)
        finally:
            self._is_refreshing = False

    async def _look_at_silent(self, now: float) -> None:
        silent = [
            stream
            for stream in self._streams.values()
            if now - stream.heard_at >= SILENCE_S and now - stream.looked_at >= SILENCE_S
        ]
        for stream in silent:
            stream.looked_at = now
        for stream in silent:
            if stream.is_started:
                self._spawn(self._watches.watch_late(stream.id))
            self._ask_log(stream)
        waiting = [stream for stream in silent if not stream.is_started]
        if waiting:
            self._spawn(self._places.tell(waiting))

    async def _measure_clock(self) -> None:
        asked_at = time.monotonic()
        seconds, microseconds = await self._redis.time()
        service_clock.learn(seconds + microseconds / 1e6, took_s=time.monotonic() - asked_at)

    async def _begin_clock(self) -> None:
        try:
            async with asyncio.timeout(CLOCK_S):
                await self._measure_clock()
        except AWAY:
            with contextlib.suppress(db.Error):  # then no message can be accepted either
                await in_database_thread(service_clock.measure_by_database)()

    async def _renew_watches(self) -> None:
        await self._watches.keep([*map(names.watch_key, self._streams), *map(user_watch_key, self._users)])

    def _drop_if_unread(self, stream: Stream) -> None:
        if not stream.readers and not stream.num_resuming and self._streams.get(stream.id) is stream:
            del self._streams[stream.id]

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@functools.cache
def get_hub() -> Hub:
    """Return the process's hub."""
    return Hub()
