"""A thread's database connection, kept from one piece of work to the next.

Django gives it back to the pool and takes it out again, and asks the server whether it lives: half a millisecond, each
time. Here the socket is asked: a server that is gone has closed it.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from django.db import connection

LONGEST_S: Final = 300.0  # then the pool may renew it


class _Held(threading.local):
    since: float = 0.0


_held = _Held()


@contextmanager
def kept() -> Iterator[None]:
    """Do a block with this thread's connection; it is given back only if it failed, the server closed it, or it is old.

    Given back to the pool on PostgreSQL, which keeps the session; closed on SQLite.
    """
    database = connection.connection
    if database is not None:
        is_old = time.monotonic() - _held.since > LONGEST_S
        if is_old or (connection.vendor == "postgresql" and is_spoiled(database)):
            connection.close()
    if connection.connection is None:
        _held.since = time.monotonic()
    try:
        yield
    finally:
        if connection.errors_occurred:
            connection.close()


def is_spoiled(database: psycopg.Connection[Any]) -> bool:
    """Whether the server has closed it, or said something that nobody asked for. Asks the server nothing."""
    if database.closed:
        return True
    poll = select.poll()  # `select.select` takes no descriptor above 1023
    poll.register(database.fileno(), select.POLLIN)
    return bool(poll.poll(0))
