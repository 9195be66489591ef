"""Is there room for one more message? A queue that grows without bound answers nobody in time.

Judges by what `model_states` last saw, so it asks neither Redis nor the database; what is not known refuses nobody.
"""

from __future__ import annotations

from typing import Final

from django.conf import settings

from chatproject.contract.names import Lane
from chatproject.generations import model_states
from chatproject.generations.errors import Refusal, Refused
from chatproject.generations.model_states import Queue

LONGEST_RETRY_S: Final = 120.0  # what clients are willing to wait by themselves
NO_WORKER_RETRY_S: Final = 30.0
# Of QUEUE_MAX_WAIT_S. What is accepted should not expire, and an estimate is none of what comes: a worker may die,
# higher lanes and users who have had less come first.
PROMISED: Final = 0.5


def check(model: str, lane: Lane, user_id: str) -> None:
    """Raise Refused(queue_full) when a new message of this user and lane would wait for more than `longest_wait_s`.

    Also when QUEUE_MAX_WAITING messages wait for the model: that holds before any worker was seen.
    """
    queue = model_states.queue(model)
    if queue is None:
        return
    wait_s, longest_s = queue.wait_s(lane, user_id), longest_wait_s()
    if wait_s is not None and wait_s > longest_s:
        raise Refused(
            Refusal.QUEUE_FULL,
            f"{_who_waits(queue, lane, user_id)} that this one could not be started within {longest_s:g} s. Try later.",
            retry_after_s=_seconds(wait_s - longest_s),
        )
    ahead = queue.ahead_of(lane)
    if ahead >= settings.QUEUE_MAX_WAITING:
        excess = ahead + 1 - settings.QUEUE_MAX_WAITING
        raise Refused(Refusal.QUEUE_FULL, retry_after_s=_until_left(queue, excess))


def limit_of_user(model: str) -> int | None:
    """Return how many unanswered messages one user may have; None while so few wait at all that nobody is counted."""
    queue, limit = model_states.queue(model), settings.QUEUE_MAX_WAITING_PER_USER
    return None if queue is None or queue.num_waiting < limit else limit


def check_user(model: str, unanswered: int) -> None:
    """Raise Refused(queue_full) when one user alone would fill the queue: QUEUE_MAX_WAITING_PER_USER unanswered."""
    queue, limit = model_states.queue(model), settings.QUEUE_MAX_WAITING_PER_USER
    if queue is not None and unanswered >= limit:
        raise Refused(
            Refusal.QUEUE_FULL,
            f"{unanswered} of your messages are not answered yet. Wait for answers, or stop some.",
            retry_after_s=_until_left(queue, unanswered + 1 - limit),
        )


def longest_wait_s() -> float:
    """Return the longest wait that is promised: a message expires after twice as long, when half the workers died."""
    return settings.QUEUE_MAX_WAIT_S * PROMISED


def _who_waits(queue: Queue, lane: Lane, user_id: str) -> str:
    own = queue.lines[lane].get(user_id, 0)
    return f"So many messages wait, {own} of them yours," if own else "So many messages wait"


def _until_left(queue: Queue, count: int) -> float:
    """Return the seconds until ``count`` of those that wait have left at the measured pace."""
    if not queue.places:
        return NO_WORKER_RETRY_S
    return _seconds(count * queue.seconds_per_generation / queue.places)


def _seconds(wait_s: float) -> float:
    return round(min(max(wait_s, 1.0), LONGEST_RETRY_S), 1)
