"""After the commit: put the generation among those that wait, with a ticket for a worker.

It may fail: the sweeper finds an accepted row that nobody knows of. Whoever accepts does not wait for Redis: it sends,
over a connection that stands ready, and threads of our own read the answers, or do it all. Knows no sockets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="dispatch")


def announce(request: GenerationRequest, text: str, then: Callable[[], None]) -> None:
    """Enqueue a request, whose JSON is ``text``; then, in another thread, call ``then``, however it went.

    Never raises and never waits.
    """
    answer = None
    try:
        answer = scripts.post_enqueue(request, text, _ticket(request))
    except Exception:
        log.exception("generation %s is enqueued another way", request.generation_id)
    _threads.submit(_announce, request, answer, then)


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
        log.warning("generation %s waits for the sweeper: %r", request.generation_id, error)
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
