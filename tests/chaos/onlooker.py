"""Looks into the database all the time, for what must be so at every moment and cannot be seen at the end."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

LOOK_S = 0.2
_TWO_AT_ONCE = """SELECT thread, count(*) FROM generations_generation
    WHERE status = 'accepted' AND thread IS NOT NULL GROUP BY thread HAVING count(*) > 1"""


@dataclass
class Seen:
    """What was seen so far."""

    looks: int = 0
    busy_twice: set[str] = field(default_factory=set)  # conversations with two answers under way


@contextmanager
def looking(database_url: str) -> Iterator[Seen]:
    """Look until the block ends, past the proxy; a database that is away is no look."""
    seen, is_over = Seen(), threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_S):
            with contextlib.suppress(psycopg.Error, sqlite3.Error):
                seen.busy_twice |= {str(thread) for thread, _ in _read(database_url)}
                seen.looks += 1

    thread = threading.Thread(target=look, name="onlooker", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join(10)


def _read(url: str) -> list[tuple[str, int]]:
    if url.startswith("sqlite:"):
        path = url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(f"file:/{path.lstrip('/')}?mode=ro", uri=True, timeout=1)) as reading:
            return reading.execute(_TWO_AT_ONCE).fetchall()
    with psycopg.connect(url, connect_timeout=2) as connection:
        return connection.execute(_TWO_AT_ONCE).fetchall()
