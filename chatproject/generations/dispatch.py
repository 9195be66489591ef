"""After the commit: put the generation among those that wait, with a ticket for a worker.

It may fail, and is tried again for a minute; the sweeper finds an accepted row that nobody knows of, but later. Whoever
accepts does not wait for Redis: it sends, over a connection that stands ready, and threads of our own read the answers,
or do it all. With a Redis that hangs they do two in a second, so what comes then is left to the sweeper. Knows no
sockets.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import redis
from django.conf import settings
from kombu.exceptions import OperationalError

from chatproject import redis_client
from chatproject.celery import app
from chatproject.contract import broker, names
from chatproject.contract.messages import GenerationRequest
from chatproject.contract.names import Lane
from chatproject.generations import scripts, tickets

log = logging.getLogger(__name__)
AWAY = (redis.RedisError, OperationalError, OSError)
NUM_THREADS: Final = 4
MOST_WAITING: Final = 256  # requests, each with its whole history
SAY_EVERY_S: Final = 10.0
AGAIN_S: Final = 0.5
GIVE_UP_S: Final = 60.0  # less than a stored log stays: what has ended meanwhile is known to have


class _Threads:
    """Threads of our own, and no more work before them than may be. Thread-safe."""

    def __init__(self, num: int, most_waiting: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=num, thread_name_prefix="dispatch")
        self._room = threading.Semaphore(most_waiting)

    def submit(self, run: Callable[..., None], *args: Any) -> None:
        """Have a thread do it. Raises queue.Full, and nobody does it, when too much waits or the process ends."""
        if not self._room.acquire(blocking=False):
            raise queue.Full
        try:
            self._pool.submit(self._run, run, args)
        except RuntimeError as error:
            raise queue.Full from error

    def _run(self, run: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._room.release()
        run(*args)


class _LeftOver:
    """Counts what is left to the sweeper, and says it once in a while. Thread-safe."""

    def __init__(self) -> None:
        self._num = 0
        self._said_at = float("-inf")
        self._lock = threading.Lock()

    def add(self) -> None:
        """Count one more."""
        with self._lock:
            self._num += 1
            is_due = time.monotonic() - self._said_at > SAY_EVERY_S
            if is_due:
                self._said_at = time.monotonic()
        if is_due:
            log.warning("Redis is too slow: %d generations since the start were left to the sweeper", self._num)


class _Again:
    """Tries again what found Redis away, the oldest first: it waits as soon as Redis is back. Thread-safe."""

    def __init__(self, most_waiting: int) -> None:
        self._waiting: deque[tuple[float, GenerationRequest]] = deque()  # by when it is given up, monotonic
        self._most_waiting = most_waiting
        self._lock = threading.Lock()
        self._is_trying = False

    def add(self, request: GenerationRequest) -> bool:
        """Keep a request for a while; say whether there is room."""
        with self._lock:
            if len(self._waiting) >= self._most_waiting:
                return False
            self._waiting.append((time.monotonic() + GIVE_UP_S, request))
            if not self._is_trying:
                self._is_trying = True
                threading.Thread(target=self._run, name="dispatch-again", daemon=True).start()
            return True

    def _run(self) -> None:
        while True:
            time.sleep(AGAIN_S)
            while self._waiting and self._is_done_with(*self._waiting[0]):
                self._waiting.popleft()
            with self._lock:
                if not self._waiting:
                    self._is_trying = False
                    return

    @staticmethod
    def _is_done_with(gives_up_at: float, request: GenerationRequest) -> bool:
        if time.monotonic() < gives_up_at:
            try:
                enqueue(request)
            except AWAY:
                return False
            except Exception:
                log.exception("generation %s waits for the sweeper", request.generation_id)
        return True


_threads = _Threads(NUM_THREADS, MOST_WAITING)
_left_over = _LeftOver()
_again = _Again(MOST_WAITING)


def announce(request: GenerationRequest, text: str, then: Callable[[], None]) -> None:
    """Enqueue a request, whose JSON is ``text``; then, in another thread, call ``then``, however it went.

    Never raises and never waits. When MOST_WAITING wait for those threads, it is left to the sweeper, without ``then``.
    """
    answer = None
    try:
        answer = scripts.post_enqueue(request, text, _ticket(request))
    except Exception:
        log.exception("generation %s is enqueued another way", request.generation_id)
    try:
        _threads.submit(_announce, request, answer, then)
    except queue.Full:
        _left_over.add()  # an answer that nobody reads ends with its connection


def enqueue(request: GenerationRequest) -> None:
    """Put an accepted generation among those that wait, and its ticket into the workers' queue. Raises one of AWAY."""
    scripts.enqueue(request, _ticket(request))


def open_connections() -> None:
    """Make a connection ready, so that the first message has one. Raises redis.RedisError."""
    redis_client.posting().open()


def ring(model: str, lane: Lane | str) -> None:
    """Send one ticket: someone waits for this model. Raises one of AWAY."""
    lane = Lane(lane)
    app.send_task(
        names.GENERATE_TASK,
        queue=names.generate_queue(model),
        priority=broker.priority_of(lane, broker_url=settings.REDIS_URL),
        retry=False,
        ignore_result=True,
    )


def ask_to_store(generation_id: str) -> None:
    """Ask `records` to copy the end of a generation to its row. Raises one of AWAY."""
    app.send_task(
        names.RECORDS_FINISH_TASK, args=[generation_id], queue=names.RECORDS_QUEUE, retry=False, ignore_result=True
    )


def _announce(request: GenerationRequest, answer: Callable[[], Any] | None, then: Callable[[], None]) -> None:
    try:
        if answer is None or not _has_come(answer):
            enqueue(request)
            redis_client.posting().open()
    except AWAY as error:
        whom = "Redis" if _again.add(request) else "the sweeper"
        log.warning("generation %s waits for %s: %r", request.generation_id, whom, error)
    except Exception:
        log.exception("generation %s waits for the sweeper", request.generation_id)
    finally:
        then()


def _has_come(answer: Callable[[], Any]) -> bool:
    try:
        answer()
    except redis.RedisError as error:  # also one that has begun anew and does not know the script
        log.info("what was posted is sent again: %r", error)
        return False
    return True


def _ticket(request: GenerationRequest) -> tickets.Ticket | None:
    try:
        return tickets.make(request.model, request.lane)
    except Exception:
        log.exception("generation %s waits without a ticket", request.generation_id)
        return None  # whoever looks for those rings within a second
