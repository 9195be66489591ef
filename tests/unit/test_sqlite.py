"""Writers of SQLite wait for each other in short steps, and not for ever."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError
from django.db.utils import ConnectionHandler

from chatproject import sqlite
from chatproject.sqlite import base


@pytest.fixture
def mine(tmp_path: Path, django_db_blocker: Any) -> Iterator[Any]:
    """A connection of the product's backend that waits for 0.3 s, to a file with a table."""
    handler = ConnectionHandler({
        "default": {
            "ENGINE": "chatproject.sqlite", "NAME": tmp_path / "db.sqlite3",
            "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 0.3, "init_command": "PRAGMA journal_mode=WAL"},
        }
    })  # fmt: skip
    connection = handler["default"]
    with django_db_blocker.unblock():
        connection.cursor().execute("CREATE TABLE words (word TEXT)")
        yield connection
        connection.close()


def busy_timeout(connection: Any) -> int:
    with connection.cursor() as cursor:
        return int(cursor.execute("PRAGMA busy_timeout").fetchone()[0])


@contextmanager
def writing(connection: Any) -> Iterator[None]:
    """A transaction, as `transaction.atomic` begins and ends one."""
    connection.set_autocommit(False, force_begin_transaction_with_broken_autocommit=True)
    try:
        yield
        connection.commit()
    finally:
        connection.set_autocommit(True)


def test_a_writer_looks_again_soon_and_then_less_often(mine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(mine.settings_dict["NAME"], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    slept: list[float] = []

    def sleep(step_s: float) -> None:
        slept.append(step_s)
        if len(slept) == 60:
            other.execute("COMMIT")

    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: sum(slept), sleep=sleep))
    with writing(mine):
        mine.cursor().execute("INSERT INTO words VALUES ('kept')")
    assert len(slept) == 60
    assert max(slept[:10]) <= 0.001
    assert slept == sorted(slept)
    assert slept[-1] > slept[0]
    assert other.execute("SELECT word FROM words").fetchall() == [("kept",)]
    assert busy_timeout(mine) == 300
    other.close()


def test_a_writer_gives_up_and_can_write_later(mine: Any) -> None:
    other = sqlite3.connect(mine.settings_dict["NAME"], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OperationalError, match="locked"), writing(mine):
        pass
    other.execute("COMMIT")
    other.close()
    assert busy_timeout(mine) == 300
    with writing(mine):
        mine.cursor().execute("INSERT INTO words VALUES ('later')")
    with mine.cursor() as cursor:
        assert cursor.execute("SELECT word FROM words").fetchall() == [("later",)]


def test_a_reader_of_what_is_past_does_not_wait_in_vain(mine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with writing(mine):
        mine.cursor().execute("INSERT INTO words VALUES ('one'), ('two')")
    reading = mine.connection.execute("SELECT word FROM words")
    reading.fetchone()
    with contextlib.closing(sqlite3.connect(mine.settings_dict["NAME"], isolation_level=None)) as other:
        other.execute("INSERT INTO words VALUES ('three')")
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=pytest.fail))
    with pytest.raises(OperationalError, match="locked"), writing(mine):
        pass
    reading.close()


def test_a_checkpoint_moves_what_was_committed_into_the_file(mine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with writing(mine):
        mine.cursor().execute("INSERT INTO words VALUES ('moved')")
    path = mine.settings_dict["NAME"]

    def words_of_the_file() -> list[Any]:
        alone = path.with_name("alone.sqlite3")
        alone.write_bytes(path.read_bytes())  # without its log
        with contextlib.closing(sqlite3.connect(alone)) as connection:
            return connection.execute("SELECT name FROM sqlite_master").fetchall()

    assert words_of_the_file() == []
    monkeypatch.setattr("chatproject.sqlite.connection", mine)
    sqlite.checkpoint()
    assert words_of_the_file() == [("words",)]


def test_writers_in_threads_lose_nothing(mine: Any) -> None:
    settings = mine.settings_dict | {"OPTIONS": mine.settings_dict["OPTIONS"] | {"timeout": 20}}

    def write_many(name: str) -> None:
        connection = ConnectionHandler({"default": settings})["default"]
        for number in range(50):
            with writing(connection):
                connection.cursor().execute("INSERT INTO words VALUES (%s)", [f"{name} {number}"])
        connection.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write_many, "abcd"))
    with mine.cursor() as cursor:
        assert cursor.execute("SELECT COUNT(DISTINCT word) FROM words").fetchone() == (200,)
