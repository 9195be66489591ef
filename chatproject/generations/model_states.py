"""What the workers last said of each model and how long its queue is, without ever waiting for Redis.

Admission asks inside a transaction. A value is at most REFRESH_S old while anybody asks; an older one is read again in
the background. What this process accepted since then is added, so that a burst does not slip through between two looks.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import redis

from chatproject import redis_client, service_clock
from chatproject.contract.errors import ContractError
from chatproject.contract.messages import ModelStatus
from chatproject.contract.names import LANES, Lane
from chatproject.generations import selectors

# Several web processes admit by their own looks: what all of them take between two looks is too much by so much.
REFRESH_S: Final = 0.25
# A queue seen longer ago says nothing about now: the first to ask after a quiet hour must not meet last hour's crowd.
FRESH_S: Final = 5.0
NUM_USERS: Final = 200  # of a lane, whose lines are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One model's queue as it was a moment ago."""

    waiting: Mapping[Lane, int]
    # How many wait of each user whose turn is soon; they sum up to ``waiting`` or less.
    lines: Mapping[Lane, Mapping[str, int]]
    places: int  # generations its ready workers run at once; 0: no worker is ready
    running: int
    seconds_per_generation: float  # 0: never measured

    @property
    def num_waiting(self) -> int:
        """Messages that wait, in all lanes."""
        return sum(self.waiting.values())

    def ahead_of(self, lane: Lane) -> int:
        """Return how many wait that would be served before a new one of ``lane``."""
        return sum(self.waiting[other] for other in LANES[: LANES.index(lane) + 1])

    def turns_before(self, lane: Lane, user: str) -> int:
        """Return how many are served before a new one of ``user`` in ``lane``, if all who wait go on to send.

        Users take turns: by the time that this one's ``n`` that wait have left, each other user has had ``n + 1``.
        """
        lines = self.lines[lane]
        own = lines.get(user, 0)
        others = len(lines) - (user in lines)
        of_others_unseen = max(0, self.waiting[lane] - sum(lines.values()))
        return self.ahead_of(lane) - self.waiting[lane] + of_others_unseen + own + others * (own + 1)

    def wait_s(self, lane: Lane, user: str) -> float | None:
        """Return the seconds a new message would wait; None when no worker is ready or none was measured.

        Those ahead leave at ``places / seconds_per_generation``, once all places are taken.
        """
        if not self.places or not self.seconds_per_generation:
            return None
        free = max(0, self.places - self.running)
        return max(0, self.turns_before(lane, user) + 1 - free) * self.seconds_per_generation / self.places


@dataclass(slots=True)
class _Known:
    asked_at: float = float("-inf")
    is_asked: bool = False
    status: ModelStatus | None = None
    pace: float = 0.0  # seconds per generation, when it was last known
    read_at: float = float("-inf")  # of the queue
    queue: Queue | None = None
    accepted: Counter[tuple[Lane, str]] = field(default_factory=Counter)  # here, since the queue was read: by user


_lock = threading.Lock()
_models: dict[str, _Known] = {}
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-states")
clock: Callable[[], float] = time.monotonic


def latest(slug: str) -> ModelStatus | None:
    """Return what is known now; None when nothing is yet. Never waits and never raises."""
    with _lock:
        return _look(slug).status


def queue(slug: str) -> Queue | None:
    """Return the queue as it is now; None when that is not known, as while Redis is away. Never waits, never raises."""
    with _lock:
        known = _look(slug)
        if known.queue is None or clock() - known.read_at > FRESH_S:
            return None
        found, accepted = known.queue, known.accepted.copy()
    if not accepted:
        return found
    waiting = dict(found.waiting)
    joined = {lane: dict(found.lines[lane]) for lane in {lane for lane, _ in accepted}}
    for (lane, user), count in accepted.items():
        waiting[lane] += count
        joined[lane][user] = joined[lane].get(user, 0) + count
    return replace(found, waiting=waiting, lines={**found.lines, **joined})


def note_accepted(slug: str, lane: Lane, user: str) -> None:
    """Count a message that joins the queue before the next look at it."""
    with _lock:
        _models.setdefault(slug, _Known()).accepted[lane, user] += 1


def refresh(slug: str) -> None:
    """Read one model's status and queue now; waits for Redis as long as its client does. The last status is kept."""
    with _lock:
        before = _models.setdefault(slug, _Known()).accepted.copy()
    status = selectors.model_status(slug)
    found = _read_queue(slug)
    with _lock:
        known = _models.setdefault(slug, _Known())
        known.asked_at, known.is_asked = clock(), False
        known.status = status or known.status
        # A worker that has just started has measured nothing yet.
        known.pace = (known.status.seconds_per_generation if known.status else 0.0) or known.pace
        known.queue, known.read_at = found and replace(found, seconds_per_generation=known.pace), clock()
        known.accepted -= before  # keeps what is positive: accepted while Redis was asked


def forget() -> None:
    """Forget everything, as after a start."""
    with _lock:
        _models.clear()


def _look(slug: str) -> _Known:
    known = _models.setdefault(slug, _Known())
    if clock() - known.asked_at > REFRESH_S and not known.is_asked:
        known.is_asked = True
        _thread.submit(refresh, slug)
    return known


def _read_queue(slug: str) -> Queue | None:
    try:
        service_clock.measure(redis_client.client())
        waiting, lines = selectors.waiting(slug), selectors.lines(slug, num_users=NUM_USERS)
        mine = [worker for worker in selectors.workers() if worker.model == slug and worker.state == "ready"]
    except (redis.RedisError, ContractError):
        return None
    return Queue(
        waiting=waiting, lines=lines, places=sum(worker.slots for worker in mine),
        running=sum(worker.running for worker in mine), seconds_per_generation=0.0,
    )  # fmt: skip
