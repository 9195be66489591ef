"""Rows by statements whose SQL is put together once: the few that every message runs.

Django builds the SQL of a query anew each time, which takes five to ten times as long as running it. Here values pass
through the same conversions of their fields, and errors are Django's. No signals, no defaults of `Manager`: for tables
that need neither. Knows no tables.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from django.db import DEFAULT_DB_ALIAS, Error, IntegrityError, connection, connections, transaction
from django.db.models import AutoField, Field, ForeignKey, Model
from psycopg.errors import DivisionByZero, DuplicatePreparedStatement, InvalidSqlStatementName
from psycopg.pq import TransactionStatus

log = logging.getLogger(__name__)

_M = TypeVar("_M", bound=Model)
_T = TypeVar("_T")
# Values of this very type go into such a field as they are, in every database; others take Django's way.
_AS_IS: Final[Mapping[str, type]] = {
    "BooleanField": bool, "CharField": str, "FloatField": float, "IntegerField": int, "PositiveBigIntegerField": int,
    "PositiveIntegerField": int, "PositiveSmallIntegerField": int, "SlugField": str, "TextField": str,
}  # fmt: skip


def _text_of_utc(value: datetime) -> str | None:
    return str(value.replace(tzinfo=None)) if value.tzinfo is UTC else None


def _if_utc(value: datetime) -> datetime | None:
    return value if value.tzinfo is UTC else None


# The same of some databases, where they may need a conversion.
_CONVERSIONS: Final[Mapping[str, Mapping[str, tuple[type, Callable[[Any], Any] | None]]]] = {
    "sqlite": {
        "DateField": (date, str), "DateTimeField": (datetime, _text_of_utc),
        "UUIDField": (uuid.UUID, attrgetter("hex")),
    },
    "postgresql": {
        "DateField": (date, None), "DateTimeField": (datetime, _if_utc), "UUIDField": (uuid.UUID, None),
    },
}  # fmt: skip


def get(model: type[_M], /, **where: Any) -> _M | None:
    """Return the row whose fields (by column attribute, as ``user_id``) equal ``where``; None when there is none."""
    return _get(model, where, "")


def lock(model: type[_M], /, **where: Any) -> _M | None:
    """As `get`, and nobody else may change the row until the transaction ends."""
    return _get(model, where, " FOR UPDATE" if connection.features.has_select_for_update else "")


def _get(model: type[_M], where: Mapping[str, Any], rest: str) -> _M | None:
    names, sql, converters = _select(model, tuple(where), DEFAULT_DB_ALIAS)
    row = execute_one(f"{sql} WHERE {_equal(model, tuple(where))}{rest}", values(model, **where))
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

    If no other transaction is around, COMMIT goes with them, and if nothing was asked before, BEGIN too. So nothing in
    the block may read what it writes, and IntegrityError may come only at the end. It does not nest.
    """
    if _held.is_together:
        raise RuntimeError("statements.together does not nest")
    with transaction.atomic():
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
        # Without a row the division fails, and the transaction with it.
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
    with connection.cursor() as cursor:
        outermost, *others = connection.atomic_blocks
        is_tests = outermost._from_testcase  # type: ignore[attr-defined]
        # With autocommit, and after a COMMIT of our own, Django's finds nothing to do.
        commits = not others and not is_tests and not connection.needs_rollback
        is_first = connection.connection.info.transaction_status == TransactionStatus.IDLE
        if commits and is_first:
            connection.connection.autocommit = True  # statements of one message are a transaction by themselves
        with connection.wrap_database_errors:
            # psycopg remembers how it parsed a statement, but not one as long as all of them in one.
            texts = [cursor.mogrify(f"EXECUTE {_name_of(sql)} {_marks(len(params))}", params) for sql, params in writes]
        if commits and not is_first:
            texts.append("COMMIT")  # one that fails keeps it from being run
        try:
            prepared = _prepare(cursor, [sql for sql, _ in writes])
            cursor.execute("; ".join(texts))
        except Error as error:
            if isinstance(error.__cause__, InvalidSqlStatementName):
                log.warning("prepared statements are gone; behind a pooler, let it keep sessions: %s", error)
                prepared.clear()
            elif not isinstance(error.__cause__, DivisionByZero):
                raise
            raise Unmet from error


def _prepare(cursor: Any, sqls: Sequence[str]) -> set[str]:
    """Prepare what this connection does not have; return the names of all that it has. Raises Unmet to begin anew."""
    prepared = _prepared.setdefault(connection.connection, set())
    for sql in sqls:
        name = _name_of(sql)
        if name in prepared:
            continue
        try:
            cursor.execute(f"PREPARE {name} AS {_with_dollars(sql)}")
        except Error as error:
            if not isinstance(error.__cause__, DuplicatePreparedStatement):
                raise
            log.warning("a statement was prepared already; behind a pooler, let it keep sessions: %s", error)
            prepared.add(name)  # by its name it is the same one
            raise Unmet from error
        prepared.add(name)
    return prepared


# What each connection has prepared: to parse and plan is a third of what PostgreSQL does for a message.
_prepared: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


@functools.cache
def _name_of(sql: str) -> str:
    """Return a name that means this statement on whatever connection it is known."""
    return f"chat_{hashlib.sha256(sql.encode()).hexdigest()[:32]}"


def _with_dollars(sql: str) -> str:
    first, *rest = sql.split("%s")
    return "".join([first, *(f"${number}{part}" for number, part in enumerate(rest, 1))]).replace("%%", "%")


@functools.cache
def _marks(count: int) -> str:
    return f"({', '.join(['%s'] * count)})" if count else ""


def insert(*rows: Model, instead: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Insert rows of one model in one statement. A key that the database counts up is not read back.

    ``instead`` are values as the database takes them, as the text of a JSONField; the rows read these back when asked.
    Raises django.db.IntegrityError, within `together` at its end.
    """
    model, database = type(rows[0]), connections[DEFAULT_DB_ALIAS]
    _insert_params(
        model, len(rows),
        [
            instead[name] if name in instead else place.taken(getattr(row, name), database)
            for row in rows
            for name, place in _written(model)
        ],
    )  # fmt: skip
    for row in rows:
        row._state.adding, row._state.db = False, DEFAULT_DB_ALIAS
        for name in instead:
            row.__dict__.pop(name, None)  # deferred, as Django has it


def insert_values(model: type[Model], *rows: Mapping[str, Any]) -> None:
    """As `insert`, but of values by column attribute; what is missing is the field's default.

    For rows that nobody needs as instances: to make one takes Django longer than to insert it.
    """
    database = connections[DEFAULT_DB_ALIAS]
    _insert_params(
        model, len(rows),
        [
            place.taken(row[name] if name in row else place.field.get_default(), database)
            for row in rows
            for name, place in _written(model)
        ],
    )  # fmt: skip


def _insert_params(model: type[Model], num_rows: int, params: list[Any]) -> None:
    columns, marks = _insert(model)
    _write(f"{columns} VALUES {', '.join([marks] * num_rows)}", params)


def _write(sql: str, params: Sequence[Any]) -> None:
    if _held.writes is None:
        execute(sql, params)
    else:
        _held.writes.append((sql, params))


def update(model: type[Model], where: Mapping[str, Any], /, **changed: Any) -> int:
    """Set fields of the rows that equal ``where``; return how many there were."""
    return execute(*_update_of(model, where, changed))


def change(model: type[Model], where: Mapping[str, Any], /, **changed: Any) -> None:
    """As `update`, of what the caller has locked, so that nobody need know how many there were: with other writes."""
    _write(*_update_of(model, where, changed))


def _update_of(model: type[Model], where: Mapping[str, Any], changed: Mapping[str, Any]) -> tuple[str, Sequence[Any]]:
    sql = f"{_update(model, tuple(changed))} WHERE {_equal(model, tuple(where))}"
    return sql, [*values(model, **changed), *values(model, **where)]


def values(model: type[Model], /, **fields: Any) -> list[Any]:
    """Return the values as the database takes them, in the order given."""
    places, database = _places(model), connections[DEFAULT_DB_ALIAS]
    return [places[name].taken(value, database) for name, value in fields.items()]


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
    """Return SQLite's own connection where a cursor of Django's would do nothing but cost more than the statement."""
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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value goes, and how the database takes it."""

    field: Field[Any, Any]
    column: str  # quoted
    kind: type | None  # values of this very type go past Django's own conversion, which is a dozen calls
    convert: Callable[[Any], Any] | None  # None: as they are; returns None to leave a value to Django

    def taken(self, value: Any, database: Any) -> Any:
        if value is None:
            return None
        if type(value) is self.kind:
            taken = value if self.convert is None else self.convert(value)
            if taken is not None:
                return taken
        return self.field.get_db_prep_save(value, database)


@functools.cache
def _places(model: type[Model]) -> Mapping[str, _Place]:
    """Return the places by column attribute."""
    conversions, places = _CONVERSIONS.get(connection.vendor, {}), {}
    for field in model._meta.concrete_fields:
        target = field
        while isinstance(target, ForeignKey):
            target = target.target_field
        name = target.get_internal_type()
        kind, convert = (_AS_IS[name], None) if name in _AS_IS else conversions.get(name, (None, None))
        places[field.attname] = _Place(field, _quoted(field.column), kind, convert)
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
def _written(model: type[Model]) -> list[tuple[str, _Place]]:
    """Return what an insert writes: all but a key that the database counts up."""
    return [(name, place) for name, place in _places(model).items() if not isinstance(place.field, AutoField)]


@functools.cache
def _insert(model: type[Model]) -> tuple[str, str]:
    places = _written(model)
    columns = ", ".join(place.column for _, place in places)
    return f"INSERT INTO {_table(model)} ({columns})", f"({', '.join(['%s'] * len(places))})"


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
