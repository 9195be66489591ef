"""One statement, as it is. On SQLite past Django's cursor, which costs more than the statement does."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connection, connections


def execute(sql: str, params: Sequence[Any]) -> int:
    """Run a statement, return how many rows it wrote."""
    plain = _plain_connection()
    if plain is not None:
        with connection.wrap_database_errors:
            return int(plain.execute(_with_question_marks(sql), params).rowcount)
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return int(cursor.rowcount)


def execute_one(sql: str, params: Sequence[Any]) -> tuple[Any, ...] | None:
    """Run a statement that returns rows, return the first; values are as the driver gives them."""
    rows = execute_all(sql, params)  # a statement left half read would keep SQLite's transaction open
    return rows[0] if rows else None


def execute_all(sql: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Run a statement and return its rows; values are as the driver gives them."""
    plain = _plain_connection()
    if plain is not None:
        with connection.wrap_database_errors:
            found: list[tuple[Any, ...]] = plain.execute(_with_question_marks(sql), params).fetchall()
            return found
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def _plain_connection() -> Any:
    """Return SQLite's own connection where a cursor of Django's would add nothing."""
    database = connections[DEFAULT_DB_ALIAS]
    is_plain = (
        database.vendor == "sqlite"
        and database.connection is not None
        and not (database.queries_logged or database.execute_wrappers or database.needs_rollback)
    )
    return database.connection if is_plain else None


@functools.cache
def _with_question_marks(sql: str) -> str:
    return sql.replace("%s", "?").replace("%%", "%")
