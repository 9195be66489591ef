"""A transaction whose writes are sent at its end, all at once where the database takes many in one round trip."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import IntegrityError, InterfaceError, OperationalError, connection, transaction

from chatproject.statements import pipelined
from chatproject.statements.pipelined import OutcomeUnknown
from chatproject.statements.plain import execute, execute_one

_T = TypeVar("_T")


class Unmet(IntegrityError):
    """What `must_write` or `must_be` asked for was not so. Nothing says which of them, or why."""


class _Held(threading.local):
    is_together = False
    writes: list[pipelined.Statement] | None = None  # None: they are sent at once


_held = _Held()


def at_once(write: Callable[[], _T]) -> _T:
    """Do ``write`` in a transaction as `together` does, and if a key or a demand stops it, once more `step_by_step`.

    Raises OutcomeUnknown, as these do.
    """
    try:
        with together():
            return write()
    except IntegrityError:
        return step_by_step(write)


def step_by_step(write: Callable[[], _T], *, lock_wait_s: float | None = None) -> _T:
    """Do ``write`` in a transaction, each statement by itself: so it is known what fails, and why.

    Raises OutcomeUnknown, and on PostgreSQL OperationalError when it waits for one lock longer than ``lock_wait_s``.
    """
    with _transaction():
        if lock_wait_s is not None and connection.vendor == "postgresql":
            execute(f"SET LOCAL lock_timeout = {int(lock_wait_s * 1000)}", ())
        return write()


@contextmanager
def together() -> Iterator[None]:
    """Do a block in a transaction, its writes at the end in one round trip where the database takes many at once.

    If no other transaction is around, COMMIT goes with them, and if nothing was asked before, BEGIN too. So nothing in
    the block may read what it writes, and IntegrityError may come only at the end. It does not nest.
    """
    if _held.is_together:
        raise RuntimeError("statements.together does not nest")
    with _transaction():
        writes: list[pipelined.Statement] = []
        _held.is_together = True
        _held.writes = writes if connection.vendor == "postgresql" else None
        try:
            yield
        finally:
            _held.is_together, _held.writes = False, None
        if writes:
            try:
                pipelined.send(writes)
            except (pipelined.Divided, pipelined.Forgotten) as error:
                raise Unmet from error


@contextmanager
def _transaction() -> Iterator[None]:
    is_committing = False
    try:
        with transaction.atomic():
            try:
                yield
            except OutcomeUnknown:
                is_committing = True
                raise
            is_committing = True
    except (OperationalError, InterfaceError) as error:  # also of a connection that Django makes after it lost one
        if is_committing and connection.vendor == "postgresql" and not connection.in_atomic_block:
            raise OutcomeUnknown(*error.args) from error
        raise


def is_together() -> bool:
    """Whether this is inside of `together`, so that limits are best left to `must_write` and `must_be`."""
    return _held.is_together


def write(sql: str, params: Sequence[Any]) -> None:
    """Run a statement of which nobody needs to know how many rows it wrote; in `together` maybe at the end."""
    if _held.writes is None:
        execute(sql, params)
    else:
        _held.writes.append((sql, params))


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
