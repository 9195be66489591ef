"""Rows by statements whose SQL is put together once: the few that every message runs.

Django builds the SQL of a query anew each time, which takes five to ten times as long as running it. Here values pass
through the same conversions of their fields, and errors are Django's. No signals, no defaults of `Manager`: for tables
that need neither. Knows no tables.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar

from django.db import DEFAULT_DB_ALIAS, DataError, IntegrityError, connection, connections, transaction
from django.db.models import AutoField, Field, ForeignKey, Model
from psycopg.errors import DivisionByZero
from psycopg.pq import TransactionStatus

_M = TypeVar("_M", bound=Model)
_T = TypeVar("_T")
# Values of this very type go into such a field as they are, in every database; others take Django's way.
_AS_IS: Final[Mapping[str, type]] = {
    "BooleanField": bool, "CharField": str, "FloatField": float, "IntegerField": int, "PositiveBigIntegerField": int,
    "PositiveIntegerField": int, "PositiveSmallIntegerField": int, "SlugField": str, "TextField": str,
}  # fmt: skip


def get(model: type[_M], /, **where: Any) -> _M | None:
    """Return the row whose fields (by column attribute, as ``user_id``) equal ``where``; None when there is none."""
    names, sql, converters = _select(model, tuple(where), DEFAULT_DB_ALIAS)
    row = execute_one(f"{sql} WHERE {_equal(model, tuple(where))}", values(model, **where))
    if row is None:
        return None
    found, database = list(row), connections[DEFAULT_DB_ALIAS]
    for index, convert, expression in converters:
        found[index] = convert(found[index], expression, database)
    return model.from_db(DEFAULT_DB_ALIAS, names, found)


class Unmet(IntegrityError):
    """What `must_write` or `must_be` asked for was not so. Nothing says which of them, or why."""


class _Held(threading.local):
    is_together = False
    writes: list[tuple[str, Sequence[Any]]] | None = None  # None: they are sent at once


_held = _Held()


def at_once(write: Callable[[], _T]) -> _T:
    """Do ``write`` in a transaction as `together` does, and if a key or a demand stops it, once more `step_by_step`."""
    try:
        with together():
            return write()
    except IntegrityError:
        return step_by_step(write)


def step_by_step(write: Callable[[], _T]) -> _T:
    """Do ``write`` in a transaction, each statement by itself: so it is known what fails, and why."""
    with transaction.atomic():
        return write()


@contextmanager
def together() -> Iterator[None]:
    """Do a block in a transaction, its writes at the end in one round trip where the database takes many at once.

    With them go BEGIN and COMMIT, if nobody else's transaction is around and nothing was asked before. So nothing in
    the block may read what it writes, and IntegrityError may come only at the end.
    """
    with transaction.atomic():
        if _held.is_together:
            yield
            return
        writes: list[tuple[str, Sequence[Any]]] = []
        _held.is_together = True
        _held.writes = writes if connection.vendor == "postgresql" else None
        try:
            yield
        finally:
            _held.is_together, _held.writes = False, None
        if writes:
            _send(writes)


def is_together() -> bool:
    """Whether this is inside of `together`, so that limits are best left to `must_write` and `must_be`."""
    return _held.is_together


def must_write(sql: str, params: Sequence[Any]) -> None:
    """Run a statement that is to write a row; in `together` only. Raises Unmet if it writes none, maybe at the end."""
    if _held.writes is not None:
        counted = f"WITH written AS ({sql} RETURNING 1) SELECT 1 / count(*) FROM written"  # noqa: S608 - ours
        _held.writes.append((counted, params))
    elif execute(sql, params) == 0:
        raise Unmet


def must_be(condition: str, params: Sequence[Any]) -> None:
    """Demand that a condition holds, after all writes so far; in `together` only. Raises Unmet, maybe at the end."""
    if _held.writes is not None:
        _held.writes.append((f"SELECT 1 / CASE WHEN {condition} THEN 1 ELSE 0 END", params))
    elif execute_one(f"SELECT 1 WHERE {condition}", params) is None:
        raise Unmet


def _send(writes: list[tuple[str, Sequence[Any]]]) -> None:
    sql = "; ".join(sql for sql, _ in writes)
    outermost, *others = connection.atomic_blocks
    is_tests = outermost._from_testcase  # type: ignore[attr-defined]
    if not others and not is_tests and not connection.needs_rollback:
        # After either, Django's own commit finds nothing to do.
        if connection.connection.info.transaction_status == TransactionStatus.IDLE:
            connection.connection.autocommit = True  # statements of one message are a transaction by themselves
        else:
            sql += "; COMMIT"  # one that fails keeps it from being run
    try:
        execute(sql, [param for _, params in writes for param in params])
    except DataError as error:
        if isinstance(error.__cause__, DivisionByZero):
            raise Unmet from error
        raise


def insert(*rows: Model, instead: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Insert rows of one model in one statement. A key that the database counts up is not read back.

    ``instead`` are values as the database takes them, as the text of a JSONField; the rows read these back when asked.
    Raises django.db.IntegrityError, within `together` at its end.
    """
    places, columns, marks = _insert(type(rows[0]))
    database = connections[DEFAULT_DB_ALIAS]
    params = [
        instead[name] if name in instead else place.taken(getattr(row, name), database)
        for row in rows
        for name, place in places
    ]
    sql = f"{columns} VALUES {', '.join([marks] * len(rows))}"
    if _held.writes is None:
        execute(sql, params)
    else:
        _held.writes.append((sql, params))
    for row in rows:
        row._state.adding, row._state.db = False, DEFAULT_DB_ALIAS
        for name in instead:
            row.__dict__.pop(name, None)  # deferred, as Django has it


def update(model: type[Model], where: Mapping[str, Any], /, **changed: Any) -> int:
    """Set fields of the rows that equal ``where``; return how many there were."""
    sql = f"{_update(model, tuple(changed))} WHERE {_equal(model, tuple(where))}"
    return execute(sql, [*values(model, **changed), *values(model, **where)])


def values(model: type[Model], /, **fields: Any) -> list[Any]:
    """Return the values as the database takes them, in the order given."""
    places, database = _places(model), connections[DEFAULT_DB_ALIAS]
    return [places[name].taken(value, database) for name, value in fields.items()]


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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value goes, and how the database takes it."""

    field: Field[Any, Any]
    column: str  # quoted
    kind: type | None  # values of this very type need no conversion
    is_hex: bool  # but that of a uuid to its digits

    def taken(self, value: Any, database: Any) -> Any:
        kind = type(value)
        if value is None:
            return None
        if kind is self.kind:  # Django's own way is a dozen calls
            return value.hex if self.is_hex else value
        return self.field.get_db_prep_save(value, database)


@functools.cache
def _places(model: type[Model]) -> Mapping[str, _Place]:
    """Return the places by column attribute."""
    vendor, places = connection.vendor, {}
    for field in model._meta.concrete_fields:
        target = field
        while isinstance(target, ForeignKey):
            target = target.target_field
        is_uuid = target.get_internal_type() == "UUIDField" and vendor in ("sqlite", "postgresql")
        kind = uuid.UUID if is_uuid else _AS_IS.get(target.get_internal_type())
        places[field.attname] = _Place(field, _quoted(field.column), kind, is_uuid and vendor == "sqlite")
    return places


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
def _insert(model: type[Model]) -> tuple[list[tuple[str, _Place]], str, str]:
    places = [(name, place) for name, place in _places(model).items() if not isinstance(place.field, AutoField)]
    columns = ", ".join(place.column for _, place in places)
    return places, f"INSERT INTO {_table(model)} ({columns})", f"({', '.join(['%s'] * len(places))})"


@functools.cache
def _update(model: type[Model], changed: tuple[str, ...]) -> str:
    columns = ", ".join(f"{_places(model)[name].column} = %s" for name in changed)
    return f"UPDATE {_table(model)} SET {columns}"  # noqa: S608 - names of our own


@functools.cache
def _equal(model: type[Model], where: tuple[str, ...]) -> str:
    return " AND ".join(f"{_places(model)[name].column} = %s" for name in where)


def _table(model: type[Model]) -> str:
    return _quoted(model._meta.db_table)


def _quoted(name: str | None) -> str:
    return str(connection.ops.quote_name(str(name)))
