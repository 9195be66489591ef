"""Rows by statements whose SQL is put together once: the few that every message runs.

Django builds the SQL of a query anew each time, which takes five to ten times as long as running it. Here values pass
through the same conversions of their fields, and errors are Django's. No signals, no defaults of `Manager`: for tables
that need neither. Knows no tables.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import connection
from django.db.models import AutoField, Field, Model

_M = TypeVar("_M", bound=Model)


def get(model: type[_M], /, **where: Any) -> _M | None:
    """Return the row whose fields (by column attribute, as ``user_id``) equal ``where``; None when there is none."""
    names, sql, converters = _select(model, tuple(where), connection.alias)
    row = execute_one(f"{sql} WHERE {_equal(model, tuple(where))}", values(model, **where))
    if row is None:
        return None
    found = list(row)
    for index, convert, expression in converters:
        found[index] = convert(found[index], expression, connection)
    return model.from_db(connection.alias, names, found)


class _Held(threading.local):
    inserts: list[tuple[str, list[Any]]] | None = None  # None: they are sent at once


_held = _Held()


@contextmanager
def together() -> Iterator[None]:
    """Send the inserts of this block at its end, in one round trip, where the database takes many statements at once.

    So nothing in the block may read what it inserts, and IntegrityError may come only at the end.
    """
    if connection.vendor != "postgresql" or _held.inserts is not None:
        yield
        return
    held: list[tuple[str, list[Any]]] = []
    _held.inserts = held
    try:
        yield
    finally:
        _held.inserts = None
    if held:
        execute("; ".join(sql for sql, _ in held), [param for _, params in held for param in params])


def insert(*rows: Model) -> None:
    """Insert rows of one model in one statement. A key that the database counts up is not read back.

    Raises django.db.IntegrityError, within `together` at its end.
    """
    fields, columns, places = _insert(type(rows[0]))
    params = [field.get_db_prep_save(getattr(row, field.attname), connection) for row in rows for field in fields]
    sql = f"{columns} VALUES {', '.join([places] * len(rows))}"
    if _held.inserts is None:
        execute(sql, params)
    else:
        _held.inserts.append((sql, params))
    for row in rows:
        row._state.adding, row._state.db = False, connection.alias


def update(model: type[Model], where: Mapping[str, Any], /, **changed: Any) -> int:
    """Set fields of the rows that equal ``where``; return how many there were."""
    sql = f"{_update(model, tuple(changed))} WHERE {_equal(model, tuple(where))}"
    return execute(sql, [*values(model, **changed), *values(model, **where)])


def values(model: type[Model], /, **fields: Any) -> list[Any]:
    """Return the values as the database takes them, in the order given."""
    return [_field(model, name).get_db_prep_save(value, connection) for name, value in fields.items()]


def execute(sql: str, params: Sequence[Any]) -> int:
    """Run a statement, return how many rows it wrote."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return int(cursor.rowcount)


def execute_one(sql: str, params: Sequence[Any]) -> tuple[Any, ...] | None:
    """Run a statement that returns rows, return the first; values are as the driver gives them."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        rows = cursor.fetchall()  # a statement left half read would keep SQLite's transaction open
    return rows[0] if rows else None


@functools.cache
def _select(
    model: type[Model], where: tuple[str, ...], alias: str
) -> tuple[list[str], str, list[tuple[int, Callable[..., Any], Any]]]:
    fields = list(model._meta.concrete_fields)
    converters = []
    for index, field in enumerate(fields):
        column = field.get_col(model._meta.db_table)
        known = [*connection.ops.get_db_converters(column), *column.get_db_converters(connection)]
        converters += [(index, convert, column) for convert in known]
    columns = ", ".join(_quoted(field.column) for field in fields)
    sql = f"SELECT {columns} FROM {_table(model)}"  # noqa: S608 - names of our own
    return [field.attname for field in fields], sql, converters


@functools.cache
def _insert(model: type[Model]) -> tuple[list[Field[Any, Any]], str, str]:
    fields = [field for field in model._meta.concrete_fields if not isinstance(field, AutoField)]
    columns = ", ".join(_quoted(field.column) for field in fields)
    return fields, f"INSERT INTO {_table(model)} ({columns})", f"({', '.join(['%s'] * len(fields))})"


@functools.cache
def _update(model: type[Model], changed: tuple[str, ...]) -> str:
    columns = ", ".join(f"{_column(model, name)} = %s" for name in changed)
    return f"UPDATE {_table(model)} SET {columns}"  # noqa: S608 - names of our own


@functools.cache
def _equal(model: type[Model], where: tuple[str, ...]) -> str:
    return " AND ".join(f"{_column(model, name)} = %s" for name in where)


@functools.cache
def _field(model: type[Model], name: str) -> Field[Any, Any]:
    return next(field for field in model._meta.concrete_fields if field.attname == name)


def _column(model: type[Model], name: str) -> str:
    return _quoted(_field(model, name).column)


def _table(model: type[Model]) -> str:
    return _quoted(model._meta.db_table)


def _quoted(name: str | None) -> str:
    return str(connection.ops.quote_name(str(name)))
