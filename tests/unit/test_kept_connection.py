"""A thread keeps its connection, sees without a question when the server has closed it, and gives up a broken one."""

from __future__ import annotations

import time

import psycopg
import pytest
from django.db import DatabaseError, connection

from chatproject import kept_connection
from chatproject.kept_connection import is_spoiled, kept

pytestmark = pytest.mark.django_db(transaction=True)


def ask() -> None:
    with kept(), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def fail() -> None:
    with kept(), connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM no_such_table")


def test_the_same_connection_serves_the_next_piece_of_work() -> None:
    ask()
    first = connection.connection
    ask()
    assert connection.connection is first


def test_a_failure_closes_it_and_the_next_one_works() -> None:
    ask()
    first = connection.connection
    with pytest.raises(DatabaseError, match="no_such_table"):
        fail()
    assert connection.connection is None
    ask()
    assert connection.connection is not first


def test_an_old_one_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ask()
    first, since = connection.connection, kept_connection._held.since
    monkeypatch.setattr(kept_connection, "LONGEST_S", 0.0)
    time.sleep(0.001)  # so that it is older than that
    ask()
    assert connection.connection is not None
    assert kept_connection._held.since > since  # on PostgreSQL the pool may give the same one again
    if connection.vendor == "sqlite":
        assert connection.connection is not first


@pytest.mark.needs("postgresql")
def test_that_the_server_has_closed_it_is_seen_without_a_question(fresh_postgres_url: str) -> None:
    url = fresh_postgres_url
    with psycopg.connect(url, autocommit=True) as mine, psycopg.connect(url, autocommit=True) as other:
        mine.execute("SELECT 1")
        assert not is_spoiled(mine)
        other.execute("SELECT pg_terminate_backend(%s)", [mine.info.backend_pid])
        deadline = time.monotonic() + 5
        while not is_spoiled(mine) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_spoiled(mine)
        assert not is_spoiled(other)
        other.close()
        assert is_spoiled(other)
