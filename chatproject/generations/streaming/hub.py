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
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, cast

import redis
from channels.layers import get_channel_layer
from django import db

from chatproject import redis_client, remembered, service_clock
from chatproject.batched import Batched
from chatproject.contract import frames as wire
from chatproject.contract import names
from chatproject.contract.errors import ContractError, FinishReason, Refusal
from chatproject.contract.frames import CHANNEL_MESSAGE_TYPE, Frame, Log
from chatproject.contract.messages import Control, Lease
from chatproject.generations import dispatch, model_states, records, tickets
from chatproject.generations.announcer import NOTICE_TYPE, user_watch_key
from chatproject.generations.errors import Refused
from chatproject.generations.models import Generation, ServedModel
from chatproject.generations.streaming.cursor import Cursor, Verdict
from chatproject.generations.streaming.queue_news import QueueNews
from chatproject.generations.streaming.reader import Reader, ReadStatus, State
from chatproject.generations.streaming.rows import Rows, in_database_thread

log = logging.getLogger(__name__)
TICK_S: Final = 0.25
CLOCK_S: Final = 1.0  # the first message waits so long at most for Redis' time
SILENCE_S: Final = 1.0
WATCH_RENEW_S: Final = 20.0
DATABASE_LOOK_S: Final = 3.0
LOGS_AT_ONCE: Final = 16
WATCHES_AT_ONCE: Final = 64


class NoticeListener(Protocol):
    """A socket that wants to hear of all of its user's generations."""

    def on_notice(self, conversation: str | None, generation: str, status: str) -> None:
        """Take one notice; returns at once and never raises."""


class Stream:
    """One generation that somebody in this process reads."""

    __slots__ = (
        "heard_at", "id", "is_reading", "log_seq", "looked_at", "news", "num_resuming", "readers", "rows_at",
        "thread", "wants_log", "was_accepted",
    )  # fmt: skip

    def __init__(self, generation_id: str, now: float) -> None:
        self.id = generation_id
        self.readers: dict[Reader, Cursor] = {}
        self.num_resuming = 0  # readers that are about to be among these
        self.heard_at = now  # a frame, or a log read
        self.looked_at = 0.0
        self.rows_at = 0.0
        self.log_seq = 0  # of the last frame when the log was last read
        self.is_reading = False
        self.wants_log = False
        self.was_accepted = False  # its row or its log was seen
        self.thread: str | None = None
        self.news = QueueNews(generation_id)

    @property
    def is_started(self) -> bool:
        """Whether any reader has seen a frame."""
        return any(cursor.seq for cursor in self.readers.values())


class Hub:
    """Feeds the readers of one process. Every method belongs to the event loop that called `start` first."""

    def __init__(self) -> None:
        self.channel = ""
        self._streams: dict[str, Stream] = {}
        self._rows = Rows()
        # A few at once: an answer of hundreds of logs would hold up the frames of everybody.
        self._logs: Batched[str, Any] = Batched(self._read_logs, at_once=LOGS_AT_ONCE)
        self._watches: Batched[str, None] = Batched(self._watch, at_once=WATCHES_AT_ONCE)
        self._users: dict[str, set[NoticeListener]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._redis = redis_client.make_async_client()
        self._layer: Any = get_channel_layer()
        self._started = asyncio.Lock()
        self._is_refreshing = self._is_saying_queue = False
        self.replacements = 0  # readers whose text had to be replaced

    async def start(self) -> None:
        """Open the channel and begin to listen; later calls return at once. Never raises for a Redis that is away."""
        async with self._started:
            if self.channel:
                return
            # Before the first message is accepted: its deadline is told in the service's time.
            await self._begin_clock()
            # A name of our own, so that it is known before Redis is: receiving subscribes, and again after a loss.
            self.channel = f"chat.web.{uuid.uuid4().hex}"
            self._spawn(_warm_models())
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
            with contextlib.suppress(*_AWAY):
                await self._keep_watching([user_watch_key(user_id)])

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
                folded, is_terminal = await self._truth(stream)
                if folded is None:
                    self._tell_gone(stream)
                    return
                self._catch_up(stream, folded, with_end=folded.is_stored or is_terminal)
                stream.heard_at = time.monotonic()
                if not stream.wants_log:
                    return
        except _AWAY as error:
            log.warning("the log of %s cannot be read now: %r", stream.id, error)
        except ContractError:
            log.exception("the log of %s", stream.id)
        finally:
            stream.is_reading = False

    async def _truth(self, stream: Stream) -> tuple[Log | None, bool]:
        """Return the folded log and whether it holds the stored end; from the row when the log is gone.

        None when there was a row and is none any more: its conversation was deleted.
        """
        folded = await self._log(stream.id)
        if folded.is_stored and folded.end is not None:
            return folded, True
        now = time.monotonic()
        stream.was_accepted |= folded.run > 0
        stands_still, stream.log_seq = folded.seq == stream.log_seq, folded.seq
        if folded.frames and folded.end is None and not stands_still:
            return folded, False
        # One that stands still may have ended: Redis began again from before its end was written.
        if now - stream.rows_at < DATABASE_LOOK_S:
            return folded, False
        stream.rows_at = now
        row = await self._rows.get(stream.id)
        if row is None:
            # Attached before its accept has committed, or deleted since.
            return (None, True) if stream.was_accepted else (folded, False)
        stream.was_accepted = True
        if row.is_terminal:
            return _log_of_row(row), True
        return folded, False

    def _tell_gone(self, stream: Stream) -> None:
        for reader, cursor in list(stream.readers.items()):
            reader.on_frames([_gone(stream.id, seq=cursor.seq + 1)])
            self.detach(stream.id, reader)

    async def _log(self, generation_id: str) -> Log:
        return wire.fold(generation_id, await self._logs.get(generation_id) or [])

    async def _read_logs(self, ids: Sequence[str]) -> dict[str, Any]:
        pipe = self._redis.pipeline(transaction=False)
        for id_ in ids:
            pipe.xrange(names.log_key(id_))
        return dict(zip(ids, await pipe.execute(), strict=True))

    def _catch_up(self, stream: Stream, folded: Log, *, with_end: bool) -> None:
        for reader, cursor in list(stream.readers.items()):
            fresh = cursor.catch_up(folded, with_end=with_end)
            if fresh is None:
                self.replacements += 1
                cursor.restart(folded)
                reader.on_state(_state(stream, folded, status="running", text=folded.text))
                fresh = cursor.catch_up(folded, with_end=with_end) or []
            self._give(stream, reader, cursor, fresh)

    async def _resume(self, stream: Stream, reader: Reader, after: int, owner_id: str | None) -> None:
        row = await self._rows.get(stream.id)
        if row is None or (owner_id is not None and str(row.user_id) != owner_id):
            raise Refused(Refusal.NOT_FOUND)
        stream.readers.pop(reader, None)  # it may read already: what it is told from here on begins with the state
        stream.was_accepted = True
        stream.thread = str(row.thread) if row.thread else None
        await self._watch_late(stream)
        try:
            folded = await self._log(stream.id)
        except (*_AWAY, ContractError) as error:
            log.warning("resume of %s without its log: %r", stream.id, error)
            folded = Log()
        cursor = Cursor()
        if row.is_terminal and not (folded.is_stored and folded.end is not None):
            # The log is gone: the state carries the whole text, and only the end frame follows.
            folded = _log_of_row(row)
            cursor.restart(folded)
            reader.on_state(_state(stream, folded, status=cast(ReadStatus, row.status), text=row.answer))
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
        reader.on_state(_state(stream, folded, status=status, seq=last))
        stream.readers[reader] = cursor
        if is_over and cursor.seq == folded.end_seq:
            self.detach(stream.id, reader)  # it has everything already
            return
        self._give(stream, reader, cursor, cursor.catch_up(folded, with_end=is_over) or [])

    async def _watch_late(self, stream: Stream) -> None:
        """Register this process, then tell the worker: the log is read after that, so nothing falls between."""
        try:
            await self._watches.get(stream.id)
        except _AWAY as error:
            log.warning("%s is read from its log: %r", stream.id, error)

    async def _watch(self, ids: Sequence[str]) -> dict[str, None]:
        pipe = self._redis.pipeline(transaction=True)
        self._register(pipe, [names.watch_key(id_) for id_ in ids])
        pipe.mget([names.lease_key(id_) for id_ in ids])
        *_, leases = await pipe.execute()
        pipe = self._redis.pipeline(transaction=False)
        for id_, lease in zip(ids, leases, strict=True):
            with contextlib.suppress(ContractError):  # of another version; its log is read
                if lease:
                    word = Control(kind="watch", generation_id=id_, channel=self.channel)
                    pipe.publish(names.control_channel(Lease.parse(lease).slot), word.to_json())
        await pipe.execute()
        return {}

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
            except _AWAY as error:
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
                self._spawn(self._watch_late(stream))
            self._ask_log(stream)
        waiting = [stream for stream in silent if not stream.is_started]
        if waiting and not self._is_saying_queue:
            self._is_saying_queue = True
            self._spawn(self._say_queue(waiting))

    async def _say_queue(self, waiting: Sequence[Stream]) -> None:
        """Tell the places of those that wait. A database or Redis that hangs holds up nothing else."""
        try:
            await self._tell_places(waiting)
        except (*_AWAY, db.Error) as error:
            log.warning("the places in the queue are not told: %r", error)
        finally:
            self._is_saying_queue = False

    async def _tell_places(self, waiting: Sequence[Stream]) -> None:
        unknown = [stream for stream in waiting if not stream.news.is_known]
        rows = await asyncio.gather(*(self._rows.get(stream.id) for stream in unknown))
        for stream, row in zip(unknown, rows, strict=True):
            if row is not None:
                stream.news.learn(row)
        told = await QueueNews.read(self._redis, [stream.news for stream in waiting if stream.news.is_known])
        for stream in waiting:
            queued = told.get(stream.id)
            if queued is not None and not stream.is_started:
                for reader in list(stream.readers):
                    reader.on_queued(queued)

    async def _measure_clock(self) -> None:
        asked_at = time.monotonic()
        seconds, microseconds = await self._redis.time()
        service_clock.learn(seconds + microseconds / 1e6, took_s=time.monotonic() - asked_at)

    async def _begin_clock(self) -> None:
        try:
            async with asyncio.timeout(CLOCK_S):
                await self._measure_clock()
        except _AWAY:
            with contextlib.suppress(db.Error):  # then no message can be accepted either
                await in_database_thread(service_clock.measure_by_database)()

    async def _renew_watches(self) -> None:
        await self._keep_watching([*map(names.watch_key, self._streams), *map(user_watch_key, self._users)])

    async def _keep_watching(self, keys: Sequence[str]) -> None:
        pipe = self._redis.pipeline(transaction=True)
        self._register(pipe, keys)
        await pipe.execute()

    def _register(self, pipe: Any, keys: Sequence[str]) -> None:
        # In a transaction: whoever is killed in the middle leaves no key for ever.
        for key in keys:
            pipe.zadd(key, {self.channel: _expiry_ms()})
            pipe.pexpire(key, names.WATCH_MS)

    def _drop_if_unread(self, stream: Stream) -> None:
        if not stream.readers and not stream.num_resuming and self._streams.get(stream.id) is stream:
            del self._streams[stream.id]

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_AWAY: Final = (redis.RedisError, OSError, asyncio.TimeoutError)


@functools.cache
def get_hub() -> Hub:
    """Return the process's hub."""
    return Hub()


@in_database_thread
def _warm_models() -> None:
    """Know the models before the first message is admitted, which may not wait for Redis, and how it is enqueued."""
    try:
        slugs = list(ServedModel.objects.filter(is_enabled=True).values_list("slug", flat=True))
    except db.Error as error:
        log.warning("the models are not known yet: %r", error)
        return
    for slug in slugs:
        model_states.refresh(slug)
        for lane in names.LANES:
            tickets.make(slug, lane)
    with contextlib.suppress(*_AWAY):
        dispatch.open_connections()


def _log_of_row(row: Generation) -> Log:
    """Return what the log of a stored generation amounts to, from its row: one delta and the end."""
    id_, end = str(row.id), records.end_of_row(row)
    seq = max(row.end_seq, 3 if row.answer else 2)
    parts: Iterable[Frame | None] = (
        Frame(generation_id=id_, run=0, seq=seq - 1, kind="delta", text=row.answer),
        Frame(generation_id=id_, run=0, seq=seq, kind="end", at=len(row.answer), end=end),
    )
    return Log(
        run=0, seq=seq, text=row.answer, frames=tuple(part for part in parts if part), end=end, end_seq=seq,
        is_stored=True,
    )  # fmt: skip


def _gone(generation_id: str, *, seq: int) -> Frame:
    end = wire.End(status="cancelled", reason=FinishReason.CANCELLED)
    return Frame(generation_id=generation_id, run=0, seq=seq, kind="end", end=end)


def _state(
    stream: Stream, folded: Log, *, status: ReadStatus, text: str | None = None, seq: int | None = None
) -> State:
    if seq is None:
        seq = folded.seq - 1 if folded.end is not None else folded.seq
    return State(generation_id=stream.id, thread=stream.thread, status=status, seq=seq, text=text)


def _expiry_ms() -> int:
    return service_clock.now_ms() + names.WATCH_MS
