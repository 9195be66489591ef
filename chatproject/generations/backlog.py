"""Is there room for one more message? A queue that grows without bound answers nobody in time.

Judges by what `model_states` last saw, so it asks neither Redis nor the database; what is not known refuses nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from django.conf import settings

from chatproject.contract.names import Lane
from chatproject.generations import model_states
from chatproject.generations.errors import Refusal, Refused
from chatproject.generations.model_states import Queue

LONGEST_RETRY_S: Final = 120.0  # what clients are willing to wait by themselves
NO_WORKER_RETRY_S: Final = 30.0


def check(model: str, lane: Lane) -> None:
    """Raise Refused(queue_full) when a new message of this lane could not be started within QUEUE_MAX_WAIT_S.

    Also when QUEUE_MAX_WAITING messages wait for the model: that holds before any worker was seen.
    """
    queue = model_states.queue(model)
    if queue is None:
        return
    wait_s = queue.wait_s(lane)
    if wait_s is not None and wait_s > settings.QUEUE_MAX_WAIT_S:
        raise Refused(
            Refusal.QUEUE_FULL,
            f"So many messages wait that yours could not be started within {settings.QUEUE_MAX_WAIT_S} s. Try later.",
            retry_after_s=_seconds(wait_s - settings.QUEUE_MAX_WAIT_S),
        )
    ahead = queue.ahead_of(lane)
    if ahead >= settings.QUEUE_MAX_WAITING:
        excess = ahead + 1 - settings.QUEUE_MAX_WAITING
        raise Refused(Refusal.QUEUE_FULL, retry_after_s=_until_left(queue, excess))


def check_user(model: str, count: Callable[[], int]) -> None:
    """Raise Refused(queue_full) when one user alone would fill the queue: QUEUE_MAX_WAITING_PER_USER unanswered.

    ``count`` counts the user's unanswered messages for the model; it is only asked when so many wait at all.
    """
    queue, limit = model_states.queue(model), settings.QUEUE_MAX_WAITING_PER_USER
    if queue is None or queue.num_waiting < limit:
        return
    unanswered = count()
    if unanswered >= limit:
        raise Refused(
            Refusal.QUEUE_FULL,
            f"{unanswered} of your messages are not answered yet. Wait for answers, or stop some.",
            retry_after_s=_until_left(queue, unanswered + 1 - limit),
        )


def _until_left(queue: Queue, count: int) -> float:
    """Return the seconds until ``count`` of those that wait have left at the measured pace."""
    if not queue.places:
        return NO_WORKER_RETRY_S
    return _seconds(count * queue.seconds_per_generation / queue.places)


def _seconds(wait_s: float) -> float:
    return round(min(max(wait_s, 1.0), LONGEST_RETRY_S), 1)
