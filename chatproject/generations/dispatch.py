"""After the commit: put the generation among those that wait, with a ticket for a worker.

It may fail: the sweeper finds an accepted row that nobody knows of. Runs in threads of its own, because a broker
that is away blocks a caller for seconds. Knows no sockets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import redis
from django.conf import settings
from kombu.exceptions import OperationalError

from chatproject.celery import app
from chatproject.contract import broker, names
from chatproject.contract.messages import GenerationRequest
from chatproject.contract.names import Lane
from chatproject.generations import scripts, tickets

log = logging.getLogger(__name__)
AWAY = (redis.RedisError, OperationalError, OSError)

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="dispatch")


def announce(request: GenerationRequest, then: Callable[[], None]) -> None:
    """Enqueue, later and elsewhere, then call ``then``, however it went. Never raises and never waits."""
    _threads.submit(_announce, request, then)


def enqueue(request: GenerationRequest) -> None:
    """Put an accepted generation among those that wait, and its ticket into the workers' queue. Raises one of AWAY."""
    try:
        ticket = tickets.make(request.model, request.lane)
    except Exception:
        log.exception("generation %s waits without a ticket", request.generation_id)
        ticket = None  # whoever looks for those rings within a second
    scripts.enqueue(request, ticket)


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


def _announce(request: GenerationRequest, then: Callable[[], None]) -> None:
    try:
        enqueue(request)
    except AWAY as error:
        log.warning("generation %s waits for the sweeper: %r", request.generation_id, error)
    except Exception:
        log.exception("generation %s waits for the sweeper", request.generation_id)
    finally:
        then()
