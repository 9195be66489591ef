"""One clock for all hosts of the service: that of Redis.

Places in the queue, deadlines and expiries are written by one host and compared by another, and by Redis itself; a host
whose own clock is an hour off must not expire what others accepted. A process measures its clock now and then, when it
talks to Redis anyway; what was measured last holds while Redis is away. At a start without Redis the database tells.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import connection
from django.utils import timezone

# A clock that is kept by NTP is taken at its word: it runs smoother than what is measured over a network.
AGREES_S: Final = 1.0
# An answer that came later tells the time too badly, but better than nothing did before.
LONGEST_S: Final = 0.5

_ahead = timedelta()  # of this host's clock; replaced as a whole
_is_measured = False


def now() -> datetime:
    """Return the service's time, in UTC."""
    return timezone.now() - _ahead


def now_ms() -> int:
    """Return the service's time in milliseconds since the epoch."""
    return int(now().timestamp() * 1000)


def measure(client: Any) -> None:
    """Compare this host's clock with that of Redis, by one TIME. Raises redis.RedisError."""
    asked_at = time.monotonic()
    seconds, microseconds = client.time()
    learn(seconds + microseconds / 1e6, took_s=time.monotonic() - asked_at)


def measure_by_database() -> None:
    """Do it by the database, where Redis cannot be asked. Raises django.db.Error."""
    now = "extract(epoch FROM clock_timestamp())"
    if connection.vendor == "sqlite":
        now = "(julianday('now') - 2440587.5) * 86400"
    with connection.cursor() as cursor:
        asked_at = time.monotonic()
        cursor.execute(f"SELECT {now}")
        learn(float(cursor.fetchone()[0]), took_s=time.monotonic() - asked_at)


def learn(seconds: float, *, took_s: float) -> None:
    """Take the time that was told just now, in seconds since the epoch, ``took_s`` after it was asked for."""
    global _ahead, _is_measured
    if took_s > LONGEST_S and _is_measured:
        return
    _is_measured = True
    ahead_s = timezone.now().timestamp() - took_s / 2 - seconds
    _ahead = timedelta(seconds=ahead_s) if abs(ahead_s) > AGREES_S else timedelta()
