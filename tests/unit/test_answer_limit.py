"""A server that stands still is given up in time. Who sets no limit waits; one's own limit is one's own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from chatproject.answer_limit import Connection, limit_answers

pytestmark = pytest.mark.needs("postgresql")


@pytest.fixture
def database(fresh_postgres_url: str) -> Iterator[Connection]:
    with Connection.connect(fresh_postgres_url, autocommit=True) as connection:
        yield connection
    limit_answers(None)


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_server_that_stands_still_is_given_up(database: Connection) -> None:
    limit_answers(0.5)
    began_s = time.monotonic()
    with standing_still(database.info.backend_pid):
        with pytest.raises(psycopg.OperationalError, match=r"has not answered for 0\.5 s"):
            database.execute("SELECT 1")
        assert time.monotonic() - began_s >= 0.5
        assert database.closed  # its answer, when it comes, is nobody's


def test_a_slow_answer_within_the_limit_is_taken(database: Connection) -> None:
    limit_answers(10.0)
    found = database.execute("SELECT pg_sleep(0.3), 7").fetchone()
    assert found is not None
    assert found[1] == 7


def test_without_a_limit_it_waits(database: Connection) -> None:
    """As a migration does: no limit is set where nobody sets one."""
    limit_answers(0.2)
    limit_answers(None)
    database.execute("SELECT pg_sleep(0.5)")


def test_a_wait_for_notices_ends_as_its_caller_says(database: Connection) -> None:
    limit_answers(0.2)
    assert list(database.notifies(timeout=0.4)) == []
    assert not database.closed
