"""One history: a few chats, three workers, two sweepers, one records process, a reader for each chat, and a nemesis."""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from django.db import connection

import workers.leases
import workers.publisher
import workers.store
from chatproject import redis_client
from chatproject.accounts.models import DailyUse, Reservation, UsageRecord, User
from chatproject.contract import broker, frames, names
from chatproject.contract.errors import ContractError
from chatproject.contract.frames import Frame
from chatproject.contract.messages import GenerationRequest, Turn
from chatproject.contract.names import PRIORITY, Lane
from chatproject.generations import (
    admission,
    announcer,
    backlog,
    dispatch,
    model_states,
    scripts,
    services,
    sweeper,
    tasks,
    tickets,
)
from chatproject.generations.models import Generation, Status
from chatproject.generations.tickets import Ticket
from tests.unit.protocol.reader import Reader
from tests.unit.protocol.virtual_redis import VirtualRedis
from tests.unit.protocol.worker import Worker, make_publisher
from tests.unit.protocol.world import Event, Process, World
from workers.store import Store

SLOTS = ("w1", "w2", "w3")
CALM_S = 20.0  # from here on nothing more breaks
LIMIT_S = 50.0
Fault = Callable[["History"], None]


@dataclass
class Chat:
    """One message, and what is known of it outside the service."""

    id: str
    max_tokens: int
    is_poison: bool = False
    is_cancelled: bool = False
    accepted_at: float | None = None
    reader: Reader = field(init=False)


class History:
    """Everything of one run."""

    def __init__(self, url: str, seed: int, alice: User, patch: pytest.MonkeyPatch, *, chats: int, poison: int) -> None:
        self.world = World(seed)
        self.random = self.world.random
        self.redis = VirtualRedis.make(url, self.world)
        self.redis.hear = self._deliver
        self.alice = alice
        self.workers: dict[str, Worker] = {}
        self.runs: dict[str, list[Worker]] = {}  # by generation, in the order of their claims
        self.boxes: dict[str, list[Frame]] = {}  # by channel: what web processes will be given
        self.lost_data_at: list[float] = []
        self.tickets_lost_until = 0.0
        self.killed: set[str] = set()  # processes that died, were drained or slept past a lease
        self.errors: list[str] = []
        self.counts: Counter[str] = Counter()
        self.kept: list[Any] = []  # what Redis held a while ago
        self._patch(patch)
        ids = (str(uuid.UUID(int=self.random.getrandbits(128), version=4)) for _ in range(chats))
        self.chats = [
            Chat(id=id_, max_tokens=self.random.randint(6, 14), is_poison=index < poison)
            for index, id_ in enumerate(ids)
        ]

    # --- parts of the world

    def store(self) -> Store:
        store = Store.__new__(Store)
        store.client = self.redis
        store._scripts = {each.name: self.redis.register_script(each.source) for each in _all_scripts()}
        return store

    def publisher(self, worker: Worker) -> Any:
        return make_publisher(self, worker)

    def is_poison(self, id_: str) -> bool:
        return any(chat.id == id_ and chat.is_poison for chat in self.chats)

    def show(self, channel: str, message: str) -> None:
        """The channel layer: fast, and may lose anything."""
        if self.redis.faults.away_until > self.world.now:
            raise redis.ConnectionError("away")
        self._deliver(channel, message)

    def _deliver(self, channel: str, message: str) -> None:
        if self.random.random() > 0.05:
            self.boxes.setdefault(channel, []).extend(frames.frames_of_message(json.loads(message)))

    def send(self, queue: str, text: str) -> None:
        """Celery's send: raises when the broker is away."""
        key = queue if queue == names.RECORDS_QUEUE else _tickets_of(queue)
        if queue == names.RECORDS_QUEUE or self.world.now >= self.tickets_lost_until:
            self.redis.lpush(key, text)

    def try_send(self, queue: str, text: str) -> None:
        try:
            self.send(queue, text)
        except dispatch.AWAY:
            self.counts["unsent"] += 1

    def pop(self, queue: str) -> str | None:
        """Celery's receive: at most once."""
        lists = broker.redis_lists(queue) if queue != names.RECORDS_QUEUE else [queue]
        pipe = self.redis.pipeline(transaction=False)
        for key in lists:
            pipe.rpop(key)
        return next((text for text in pipe.execute() if text is not None), None)

    # --- processes

    def start_worker(self, slot: str) -> None:
        worker = Worker(self, slot, len(self.runs) + self.counts["boots"])
        self.counts["boots"] += 1
        self.workers[slot] = worker
        worker.start()

    def die(self, worker: Worker) -> None:
        """The end of a worker's process; its supervisor starts the next one."""
        self.killed.add(worker.process.name)
        self.world.kill(worker.process)
        self._later(1.5, lambda: self.start_worker(worker.config.slot))

    def start_records(self) -> None:
        process = self.records = Process("records")
        self.world.spawn(process, self._store_ends)
        for _ in range(2):
            sweeping = sweeper.Sweeper(clock=self.world.monotonic)
            sweeping._stopped = Event(self.world)  # type: ignore[assignment]
            self.world.spawn(process, sweeping.run, after_s=self.random.random())

    def _store_ends(self) -> None:
        while True:
            self.world.sleep(0.15)
            try:
                while (id_ := self.pop(names.RECORDS_QUEUE)) is not None:
                    tasks.finish.run(id_)
            except dispatch.AWAY:
                continue
            except ContractError as error:  # Celery would log that its task failed
                self.errors.append(f"records: {error}")

    def _accept(self, chat: Chat) -> None:
        draft = admission.Draft(
            generation_id=chat.id, user=self.alice, client_id=chat.id, body_sha256="b", thread=uuid.uuid4(),
            model=None, turns=(Turn(role="user", text="Tell me"),), watcher=chat.reader.channel,
            params=admission.Params(max_tokens=chat.max_tokens),
        )  # fmt: skip
        admission.accept(draft)
        chat.accepted_at = self.world.now
        self.world.spawn(chat.reader.process, chat.reader.read)

    def cancel(self, chat: Chat) -> None:
        """The user presses stop, in some web process."""
        chat.is_cancelled = True
        self.world.spawn(
            self.web, lambda: services.stop_row(Generation.objects.defer("request").get(id=chat.id)),
        )  # fmt: skip

    def _later(self, seconds: float, run: Callable[[], None]) -> None:
        self.world.spawn(self.outside, run, after_s=seconds)

    # --- the run

    def run(self, faults: list[Fault]) -> None:
        """Play it to its end."""
        self.outside, self.web = Process("outside"), Process("web")
        self.start_records()
        for slot in SLOTS:
            self.start_worker(slot)
        for chat in self.chats:
            chat.reader = Reader(self, chat.id)
            self._later(self.random.uniform(0, 10), lambda chat=chat: self._accept(chat))
        self.world.spawn(self.outside, lambda: self._break(faults))
        with self._noting_errors():
            self.world.run(until=self._is_over, limit_s=LIMIT_S)

    def _break(self, faults: list[Fault]) -> None:
        while faults and self.world.now < CALM_S:
            self.world.sleep(self.random.uniform(0.2, 2.0))
            self.kept = [*self.kept[-1:], self.redis.snapshot()]
            fault = self.random.choice(faults)
            self.counts[fault.__name__] += 1
            fault(self)

    def _is_over(self) -> bool:
        return self.world.now > CALM_S and all(
            chat.reader.is_ended for chat in self.chats
        )  # fmt: skip

    @contextmanager
    def _noting_errors(self) -> Any:
        """What the product logs as an error with a traceback is one that nobody expected."""
        note = _Note(self.errors)
        loggers = [logging.getLogger("chatproject"), logging.getLogger("workers")]
        for logger in loggers:
            logger.addHandler(note)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(note)

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        client = self.redis
        patch.setattr(redis_client, "client", lambda: client)
        patch.setattr(redis_client, "posting", lambda: SimpleNamespace(is_ready=True, send=self._post, open=_ignore))
        scripts._bound.cache_clear()
        for module in (workers.publisher, workers.leases, workers.store):
            patch.setattr(module, "time", SimpleNamespace(monotonic=self.world.monotonic))
        patch.setattr(dispatch, "_threads", SimpleNamespace(submit=self._submit))
        patch.setattr(dispatch, "_again", SimpleNamespace(add=self._try_again))
        patch.setattr(dispatch, "app", SimpleNamespace(send_task=self._send_task))
        patch.setattr(tickets, "make", self._ticket)
        patch.setattr(model_states, "latest", lambda slug: None)
        patch.setattr(backlog, "check", lambda *_: None)
        patch.setattr(backlog, "limit_of_user", lambda model: None)
        patch.setattr(announcer, "get_announcer", lambda: SimpleNamespace(send_frames=self._announce, notice=_ignore))

    def _post(self, *command: Any) -> Callable[[], Any] | None:
        """Sent in this moment; it comes a little later, or never, whoever waits for the answer."""
        if self.random.random() < 0.3:
            return None  # no connection stands ready
        came: list[Any] = []

        def carry() -> None:
            try:
                came.append(self.redis.execute_command(*command))
            except redis.RedisError as error:
                came.append(error)

        def answer() -> Any:
            for _ in range(100):
                if came:
                    break
                self.world.sleep(0.01)
            found = came[0] if came else redis.TimeoutError("no answer")
            if isinstance(found, Exception):
                raise found
            return found

        self.world.spawn(self.web, carry, after_s=self.random.uniform(0, 0.02))
        return answer

    def _submit(self, run: Callable[..., None], *args: Any) -> None:
        # Between the commit and here the web process may die; then nobody but the sweeper knows of the row.
        if self.random.random() > 0.1:
            self.world.spawn(self.web, lambda: run(*args))

    def _try_again(self, request: GenerationRequest) -> bool:
        def again() -> None:
            is_done = False
            while not is_done:
                self.world.sleep(dispatch.AGAIN_S)
                is_done = dispatch._Again._is_done_with(math.inf, request)

        self.world.spawn(self.web, again)
        return True

    def _send_task(self, name: str, *, args: Any = ("-",), queue: str, **_: Any) -> None:
        assert not connection.in_atomic_block, "Redis is asked inside a transaction"
        self.send(queue, args[0])

    def _ticket(self, model: str, lane: str) -> Ticket | None:
        assert not connection.in_atomic_block, "Redis is asked inside a transaction"
        return (
            None if self.world.now < self.tickets_lost_until else Ticket(_tickets_of(names.generate_queue(model)), "-")
        )

    def _announce(self, channels: list[str], sent: list[Frame]) -> None:
        for channel in channels:
            if self.random.random() > 0.05:
                self.boxes.setdefault(channel, []).extend(sent)

    # --- what holds afterwards

    def violations(self) -> set[str]:
        """Return the invariants of the design that this history broke."""
        found = {f"error: {error}" for error in self.errors}
        rows = {str(row.id): row for row in Generation.objects.all()}
        charges = Counter(str(id_) for id_ in UsageRecord.objects.values_list("generation_id", flat=True))
        for chat in self.chats:
            row, reader = rows[chat.id], chat.reader
            if row.status == Status.ACCEPTED:
                found.add("lost")
                continue
            if row.status in ("failed", "expired") and not chat.is_poison:
                found.add("failed though harmless")
            if charges[chat.id] != 1:
                found.add("not charged once")
            found |= reader.violations
            if not reader.is_ended:
                found.add("reader left without an end")
            elif (reader.text, reader.status) != (row.answer, row.status):
                found.add(f"stored is not streamed: {row.status} {row.answer!r}, {reader.status} {reader.text!r}")
            numbers = [int(word.partition(".")[0]) for word in row.answer.split()]
            if numbers != list(range(1, len(numbers) + 1)) or (
                row.status == "done" and len(numbers) != chat.max_tokens
            ):
                found.add(f"answer out of order: {row.answer} of {chat.max_tokens}, {row.status}")
            if reader.replacements and not (self.lost_data_at and self._lost_its_worker(chat)):
                found.add("replaced without cause")
            if row.status == "cancelled" and not chat.is_cancelled:
                found.add("cancelled by nobody")
        if Reservation.objects.exists() and "lost" not in found:
            found.add("reservation left")
        if any(use.tokens_reserved for use in DailyUse.objects.all()) and "lost" not in found:
            found.add("reservation left")
        if len(rows) != len(self.chats):
            found.add("rows")
        return found

    def _lost_its_worker(self, chat: Chat) -> bool:
        return any(worker.process.name in self.killed for worker in self.runs.get(chat.id, ()))


class _Note(logging.Handler):
    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(f"{record.getMessage()}: {record.exc_info[1]!r}" if record.exc_info else record.getMessage())


def _tickets_of(queue: str) -> str:
    return broker.redis_list(queue, PRIORITY[Lane.INTERACTIVE])


def _ignore(**_: Any) -> None:
    """A notice that nobody reads, a connection that nobody needs."""


def _all_scripts() -> Any:
    from chatproject.contract import scripts as contract_scripts

    return contract_scripts.ALL
