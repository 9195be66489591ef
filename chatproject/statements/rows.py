"""Rows by statements whose SQL is put together once.

Django builds the SQL of a query anew each time, which takes five to ten times as long as running it. Here values pass
through the same conversions of their fields, and errors are Django's. No signals, no defaults of `Manager`: for tables
that need neither.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, TypeVar

from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.models import AutoField, Field, ForeignKey, Model

from chatproject.statements.plain import execute, execute_one
from chatproject.statements.transactions import write

_M = TypeVar("_M", bound=Model)
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
    write(f"{columns} VALUES {', '.join([marks] * num_rows)}", params)


def update(model: type[Model], where: Mapping[str, Any], /, **changed: Any) -> int:
    """Set fields of the rows that equal ``where``; return how many there were."""
    return execute(*_update_of(model, where, changed))


def change(model: type[Model], where: Mapping[str, Any], /, **changed: Any) -> None:
    """As `update`, of what the caller has locked, so that nobody need know how many there were: with other writes."""
    write(*_update_of(model, where, changed))


def _update_of(model: type[Model], where: Mapping[str, Any], changed: Mapping[str, Any]) -> tuple[str, Sequence[Any]]:
    sql = f"{_update(model, tuple(changed))} WHERE {_equal(model, tuple(where))}"
    return sql, [*values(model, **changed), *values(model, **where)]


def values(model: type[Model], /, **fields: Any) -> list[Any]:
    """Return the values as the database takes them, in the order given."""
    places, database = _places(model), connections[DEFAULT_DB_ALIAS]
    return [places[name].taken(value, database) for name, value in fields.items()]


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
