"""Find accepted rows that nobody serves, and bring them back: the promise does not rest on any message in Redis.

Every second, in a thread of each records process, any number of them. An accepted row that neither waits, nor is
leased, nor has ended in two looks 2 s apart goes back to the queue by one conditional UPDATE; one look is enough where
a supervisor saw the worker die. Any Redis error makes the looks start over, because what was not seen is not gone. Also
stores ends nobody stored, expires, and repeats stops; and copies SQLite's log into its file.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from django import db
from django.db.models import F

from chatproject import redis_client, service_clock, sqlite
from chatproject.contract import broker, names
from chatproject.contract.errors import FAILURE_TEXT, ContractError, Failure
from chatproject.contract.frames import End
from chatproject.generations import dispatch, scripts, selectors, services
from chatproject.generations.models import Generation, Status

log = logging.getLogger(__name__)
PERIOD_S: Final = 1.0
LOOKS_APART_S: Final = 2.0
MAX_ATTEMPTS: Final = 3
MAX_DEATHS: Final = 8
PAGE: Final = 2000
ROWS_AT_ONCE: Final = 500
ENDS_EVERY: Final = 4  # looks: so often the logs of those that a worker serves are looked at; it asks for ends itself
# With so many messages for records in line, asking once more only makes the line longer: each second one for every end
# that waits, and the oldest of them would be stored last. Chaos saw a minute between an end and its commit.
LONG_LINE: Final = 50
# The request is read of the few that go back to the queue: with all of them it takes longer than all else here.
_LOOKED_AT: Final = (
    "user_id", "thread", "model", "lane", "status", "accepted_at", "expires_at", "cancel_requested_at", "attempt",
    "deaths", "tokens_at_death", "run_at_death", "version",
)  # fmt: skip


class Sweeper:
    """Looks every second. Owned by its thread; `stop` may be called from any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._missing_since: dict[str, float] = {}
        self._num_asked = 0  # messages that wait for records
        self._num_sweeps = 0
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sweep until stopped. No error ends it."""
        while not self._stopped.wait(PERIOD_S):
            try:
                self.sweep()
            except dispatch.AWAY as error:
                self._missing_since.clear()
                log.warning("sweep: Redis is away: %r", error)
            except db.Error as error:
                log.warning("sweep: the database is away: %r", error)
            except Exception:
                log.exception("sweep")
            try:
                sqlite.checkpoint()
            except Exception as error:
                log.warning("SQLite's log is not copied: %r", error)
            finally:
                db.connections.close_all()

    def stop(self) -> None:
        """End the loop within a look."""
        self._stopped.set()

    def sweep(self) -> None:
        """Look once at every accepted row: in few words at those that wait or are served, at all others closely.

        Raises one of dispatch.AWAY or a database error.
        """
        looks_at_served = self._num_sweeps % ENDS_EVERY == 0
        self._num_sweeps += 1
        models: set[str] = set()
        leased: dict[str, bool] = {}
        service_clock.measure(redis_client.client())
        lost = redis_client.client().smembers(names.LOST_KEY)
        for rows in _accepted():
            models |= {row.model for row in rows}
            leased_here, waiting = _glance(rows)
            leased |= leased_here
            now = service_clock.now()
            close = [
                row.id
                for row in rows
                if row.cancel_requested_at is not None
                or (looks_at_served if leased[row.key] else row.key not in waiting or now >= row.expires_at)
                or row.key in self._missing_since
                or row.key in lost
            ]
            for start in range(0, len(close), ROWS_AT_ONCE):
                self._look_closely(close[start : start + ROWS_AT_ONCE])
        for id_ in [id_ for id_ in self._missing_since if leased.get(id_, True)]:
            del self._missing_since[id_]
        if models:
            _ring_for_waiting(models)

    def _look_closely(self, ids: Sequence[uuid.UUID]) -> None:
        rows = list(
            Generation.objects.filter(status=Status.ACCEPTED, id__in=ids).only(*_LOOKED_AT).order_by("accepted_at")
        )
        looks, lost, self._num_asked = _looks(rows)
        for row, (is_waiting, has_request, lease, last) in zip(rows, looks, strict=True):
            is_lost = str(row.id) in lost
            is_waiting = is_waiting and has_request
            try:
                self._judge(row, is_waiting=is_waiting, is_leased=bool(lease), is_lost=is_lost, last=last)
            except ContractError:  # all others are looked at all the same
                log.exception("sweep: generation %s", row.id)

    def _judge(self, row: Generation, *, is_waiting: bool, is_leased: bool, is_lost: bool, last: list[Any]) -> None:
        id_ = str(row.id)
        if last and last[0][1].get("k") in ("end", "stored"):
            self._missing_since.pop(id_, None)
            if self._num_asked < LONG_LINE:
                dispatch.ask_to_store(id_)
            return
        if row.cancel_requested_at is not None:
            services.push_cancel(row)
        if is_leased:
            self._missing_since.pop(id_, None)
            return
        if service_clock.now() >= row.expires_at and not last:
            _write_end(row, Failure.EXPIRED)
            return
        if is_waiting:
            self._missing_since.pop(id_, None)
            return
        missing_s = self._clock() - self._missing_since.setdefault(id_, self._clock())
        # Of all sweepers that see the mark, only the one that takes it away goes by it: a death is counted once.
        if missing_s >= LOOKS_APART_S or (is_lost and redis_client.client().srem(names.LOST_KEY, id_) == 1):
            self._bring_back(row)
            self._missing_since.pop(id_, None)

    def _bring_back(self, row: Generation) -> None:
        folded = selectors.log_of(str(row.id))
        # One that comes back and cannot be queued, because Redis refuses writes, is brought back again: it died once.
        died = folded.run > 0 and folded.run != row.run_at_death
        attempt, deaths = row.attempt, row.deaths + (1 if died else 0)
        if died:
            # A run that added tokens was no poison: the count of deaths in a row starts over.
            attempt = 1 if len(folded.tokens) > row.tokens_at_death else row.attempt + 1
        moved = Generation.objects.filter(id=row.id, status=Status.ACCEPTED, version=row.version).update(
            attempt=attempt, deaths=deaths, tokens_at_death=len(folded.tokens), version=F("version") + 1,
            run_at_death=folded.run if died else row.run_at_death,
        )  # fmt: skip
        if moved != 1:
            return  # Another sweeper was first, or it has ended.
        row.attempt, row.deaths = attempt, deaths
        if attempt > MAX_ATTEMPTS or deaths > MAX_DEATHS:
            _write_end(row, Failure.QUARANTINED)
            return
        log.info("generation %s goes back to the queue (attempt %d, deaths %d)", row.id, attempt, deaths)
        request = selectors.request_of(row)
        dispatch.enqueue(request)


class _Accepted(NamedTuple):
    """What a glance needs of a row."""

    id: uuid.UUID
    model: str
    lane: str
    accepted_at: datetime
    expires_at: datetime
    cancel_requested_at: datetime | None

    @property
    def key(self) -> str:
        return str(self.id)


def _accepted() -> Iterator[list[_Accepted]]:
    """Return all accepted rows in pages, the oldest first. What is accepted meanwhile may be missing."""
    after: _Accepted | None = None
    while True:
        rows = Generation.objects.filter(status=Status.ACCEPTED).order_by("accepted_at", "id")
        if after is not None:
            rows = rows.filter(accepted_at__gte=after.accepted_at).exclude(
                accepted_at=after.accepted_at, id__lte=after.id
            )
        page = [_Accepted(*row) for row in rows.values_list(*_Accepted._fields)[:PAGE]]
        if page:
            yield page
        if len(page) < PAGE:
            return
        after = page[-1]


def _glance(rows: Sequence[_Accepted]) -> tuple[dict[str, bool], set[str]]:
    """Return of each row whether someone serves it, and the ids that wait and have their requests.

    Nearly all others do: of them a few words of Redis are enough. One request that is missing makes all suspect.
    """
    queues: dict[str, list[str]] = {}
    for row in rows:
        queues.setdefault(names.wait_key(row.model, row.lane), []).append(row.key)
    pipe = redis_client.client().pipeline(transaction=False)
    pipe.mget([names.lease_key(row.key) for row in rows])
    for wait, ids in queues.items():
        pipe.zmscore(wait, ids)
    leases, *scores = pipe.execute()
    leased = {row.key: bool(lease) for row, lease in zip(rows, leases, strict=True)}
    waiting = {
        id_
        for ids, found in zip(queues.values(), scores, strict=True)
        for id_, score in zip(ids, found, strict=True)
        if score is not None
    }
    requests: Any = redis_client.client().exists(*map(names.request_key, waiting)) if waiting else 0
    return leased, waiting if requests == len(waiting) else set()


def _looks(rows: list[Generation]) -> tuple[Iterable[tuple[bool, bool, str | None, list[Any]]], set[str], int]:
    """Read of Redis what it knows of every row, which ids are lost, and how many messages wait for records."""
    if not rows:
        return [], set(), 0
    pipe = redis_client.client().pipeline(transaction=False)
    for row in rows:
        id_ = str(row.id)
        pipe.zscore(names.wait_key(row.model, row.lane), id_)
        pipe.exists(names.request_key(id_))
        pipe.get(names.lease_key(id_))
        pipe.xrevrange(names.log_key(id_), count=1)
    pipe.smembers(names.LOST_KEY)
    lists = broker.redis_lists(names.RECORDS_QUEUE)
    for key in lists:
        pipe.llen(key)
    answers = pipe.execute()
    flat, lost, lengths = answers[: -len(lists) - 1], answers[-len(lists) - 1], answers[-len(lists) :]
    looks = [
        (score is not None, bool(exists), lease, last)
        for score, exists, lease, last in zip(*[iter(flat)] * 4, strict=True)
    ]
    return looks, lost, sum(lengths)


def _write_end(row: Generation, failure: Failure) -> None:
    end = End(
        status="expired" if failure is Failure.EXPIRED else "failed", code=failure, message=FAILURE_TEXT[failure]
    )  # fmt: skip
    answer = scripts.end(generation_id=str(row.id), model=row.model, lane=row.lane, end=end)
    if answer != "leased":
        dispatch.ask_to_store(str(row.id))


def _ring_for_waiting(models: set[str]) -> None:
    """Ring when more wait than tickets lie in the queue: a lost ticket costs a second, not an answer."""
    client = redis_client.client()
    for model in models:
        lanes = [(lane, client.zcard(names.wait_key(model, lane))) for lane in names.LANES]
        num_tickets = sum(client.llen(key) for key in broker.redis_lists(names.generate_queue(model)))
        missing = sum(count for _, count in lanes) - num_tickets
        for lane, count in lanes:
            for _ in range(min(missing, count, 32)):
                dispatch.ring(model, lane)
            missing -= count
