"""A server that stands still is given up in time. Who sets no limit waits; one's own limit is one's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from chatproject.answer_limit import POOL, Connection, limit_answers
from tests.servers import postgresql
from tests.service import ROOT

pytestmark = pytest.mark.needs("postgresql")


@pytest.fixture(autouse=True)
def no_limit_again() -> Iterator[None]:
    yield
    limit_answers(None)


@pytest.fixture
def database(fresh_postgres_url: str) -> Iterator[Connection]:
    with Connection.connect(fresh_postgres_url, autocommit=True) as connection:
        yield connection


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


_FROZEN = """
import sys
from chatproject.answer_limit import Connection, limit_answers
limit_answers(0.5)
with Connection.connect(sys.argv[1], autocommit=True) as database:
    print("asks", flush=True)
    print(len(database.execute("SELECT repeat('x', 1000), pg_sleep(0.001) FROM generate_series(1, 500)").fetchall()))
"""


def test_who_stood_still_itself_finds_its_answer(fresh_postgres_url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _FROZEN, fresh_postgres_url], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "asks\n"
        time.sleep(0.2)  # in the midst of the answer
        with standing_still(asking.pid):
            time.sleep(1.5)
        assert asking.stdout.read() == "500\n"


def test_the_pool_is_back_with_the_server() -> None:
    """However often it has tried in vain: its own tries would come 1, 2, 4, ... 64 s apart."""
    pool_options = {**POOL, "min_size": 1, "timeout": 0.5}
    with postgresql() as server:
        pool = ConnectionPool(
            server.url, kwargs={"autocommit": True, "connect_timeout": 2}, open=True,
            check=ConnectionPool.check_connection, **pool_options,
        )  # fmt: skip
        with pool:
            pool.wait(10)
            limit_answers(0.5)
            with server.hanging():
                until = time.monotonic() + 11.0  # three tries of 2 s each, 1 and 2 s apart; the next would be 4 s later
                while time.monotonic() < until:
                    with pytest.raises(psycopg.OperationalError), pool.connection() as connection:
                        connection.execute("SELECT 1")
            with pool.connection(timeout=1.5) as connection:
                connection.execute("SELECT 1")


def test_without_a_limit_it_waits(database: Connection) -> None:
    """As a migration does: no limit is set where nobody sets one."""
    limit_answers(0.2)
    limit_answers(None)
    database.execute("SELECT pg_sleep(0.5)")


def test_a_wait_for_notices_ends_as_its_caller_says(database: Connection) -> None:
    limit_answers(0.2)
    assert list(database.notifies(timeout=0.4)) == []
    assert not database.closed
