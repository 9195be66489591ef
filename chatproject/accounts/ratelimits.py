"""Slow down who tries too often: sign-ins, sign-ups, wrong keys. Counted in Redis over all web processes.

Knows no user and no plan: requests per minute of a plan are counted from the rows, in admission. When Redis is away
each process counts for itself: a limit that is softer for a while, instead of an open or a shut door.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from typing import Any, Final

import redis

from chatproject import redis_client
from chatproject.accounts.errors import Refused
from chatproject.contract.errors import Refusal

log = logging.getLogger(__name__)
MAX_LOCAL: Final = 10_000

_lock = threading.Lock()
_local: dict[str, tuple[int, float]] = {}  # name -> (count, monotonic end of its window)


def check(*, name: str, who: str, limit: int, window_s: int) -> None:
    """Count one try of ``who``. Raises Refused(rate_limited) with retry_after_s when there were more than ``limit``.

    Blocks for about a second at most when Redis is away: call it from a thread.
    """
    count, left_s = _count(name, who, window_s)
    if count > limit:
        wait_s = max(1, math.ceil(left_s))
        raise Refused(Refusal.RATE_LIMITED, f"Too many tries. Try again in {wait_s} s.", retry_after_s=wait_s)


def forgive(*, name: str, who: str) -> None:
    """Forget the tries of ``who``, after a good one."""
    key = _key(name, who)
    with _lock:
        _local.pop(key, None)
    try:
        redis_client.client().delete(key)
    except redis.RedisError:
        log.info("the tries of %s are forgotten when their window ends: Redis is away", name)


def _count(name: str, who: str, window_s: int) -> tuple[int, float]:
    key = _key(name, who)
    try:
        pipeline = redis_client.client().pipeline(transaction=True)
        pipeline.set(key, 0, nx=True, ex=window_s)
        pipeline.incr(key)
        pipeline.pttl(key)
        answers: list[Any] = pipeline.execute()
        return int(answers[1]), int(answers[2]) / 1000
    except redis.RedisError as error:
        log.warning("tries of %s are counted in this process alone: %r", name, error)
        return _count_here(key, window_s)


def _count_here(key: str, window_s: int) -> tuple[int, float]:
    now = time.monotonic()
    with _lock:
        count, ends = _local.get(key, (0, 0.0))
        if ends <= now:
            count, ends = 0, now + window_s
        if len(_local) >= MAX_LOCAL:
            _local.clear()
        _local[key] = (count + 1, ends)
        return count + 1, ends - now


def _key(name: str, who: str) -> str:
    # A digest: addresses and names people typed do not belong into Redis' keys.
    return f"rate:{name}:{hashlib.sha256(who.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
