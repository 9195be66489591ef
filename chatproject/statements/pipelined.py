"""Many statements in one round trip to PostgreSQL: libpq's pipeline mode, each prepared once per connection.

Parsing and planning is a third of what the server does for a message, and reading values out of SQL text another
tenth. Psycopg's own pipelines take longer than both: here its libpq is driven with what is needed and no more.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

from django.db import InterfaceError, connection
from django.db import OperationalError as DjangoOperationalError
from psycopg import Connection, OperationalError, generators, pq
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import DivisionByZero, DuplicatePreparedStatement, InvalidSqlStatementName, error_from_result
from psycopg.pq import ExecStatus, TransactionStatus

log = logging.getLogger(__name__)

Statement = tuple[str, Sequence[Any]]  # SQL with %s, and values as Django's fields prepare them
_SUCCESSES: Final = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


class Divided(Exception):
    """A statement divided by zero, which is how one says that it must not be."""


class Forgotten(Exception):
    """The connection did not have prepared what it had, as behind a pooler: nothing was written, it may be again."""


class OutcomeUnknown(DjangoOperationalError):
    """The connection ended while a transaction was being committed: whether it was, or still will be, nobody knows."""


@dataclass(slots=True)
class _Session:
    """What one connection has prepared."""

    names: set[bytes] = field(default_factory=set)
    is_generic: bool = False


_sessions: WeakKeyDictionary[Connection[Any], _Session] = WeakKeyDictionary()


def send(statements: Sequence[Statement]) -> None:
    """Run statements in order, all of them or none; their rows are not wanted.

    Commits the transaction when Django's outermost block is the only one: its own COMMIT then finds nothing to do.
    Raises Divided, Forgotten, OutcomeUnknown or Django's errors.
    """
    connection.validate_no_broken_transaction()
    connection.ensure_connection()
    outermost, *others = connection.atomic_blocks
    commits = not others and not outermost._from_testcase  # type: ignore[attr-defined]
    is_first = connection.connection.info.transaction_status == TransactionStatus.IDLE
    # What comes before one Sync is a transaction by itself.
    begin, commit = is_first and not commits, commits and not is_first
    session = _sessions.setdefault(connection.connection, _Session())
    try:
        with _logged(statements, "; COMMIT" if commit else ""), connection.wrap_database_errors:
            _run(connection.connection, session, statements, begin=begin, commit=commit)
    except (DjangoOperationalError, InterfaceError) as error:
        if commits and connection.connection.closed:  # else the server said itself that it did not
            connection.close()  # or Django, at the end of its block, waits for another one only to leave it as it is
            raise OutcomeUnknown(*error.args) from error
        raise
    session.is_generic |= commits  # a setting is undone with its transaction


def _run(
    database: Connection[Any], session: _Session, statements: Sequence[Statement], *, begin: bool, commit: bool
) -> None:
    transformer = Transformer.from_context(database)
    # Before anything is sent: a value may be one that no database takes.
    values = [transformer.dump_sequence(params, [PyFormat.TEXT] * len(params)) for _, params in statements]
    sent: list[bytes] = []  # of each command the name that it prepares
    postgres = database.pgconn

    def ask(command: bytes) -> None:
        postgres.send_query_params(command, None)
        sent.append(b"")

    with database.lock, _pipeline(database):
        if begin:
            ask(b"BEGIN")
        if not session.is_generic:
            ask(b"SET plan_cache_mode = force_generic_plan")  # auto plans the counts anew each time
        for (sql, _), given in zip(statements, values, strict=True):
            name = _name_of(sql)
            if name not in session.names and name not in sent:
                postgres.send_prepare(name, _with_dollars(sql))
                sent.append(name)
            postgres.send_query_prepared(name, given)
            sent.append(b"")
        if commit:
            ask(b"COMMIT")  # skipped where one before it fails
        postgres.pipeline_sync()
        results = database.wait(_results(database, len(sent)))
    for prepares, result in zip([*sent, b""], results, strict=False):
        if result.status not in _SUCCESSES:
            _fail(session, prepares, result, database)
        if prepares:
            session.names.add(prepares)


@contextmanager
def _pipeline(database: Connection[Any]) -> Iterator[None]:
    try:
        database.pgconn.enter_pipeline_mode()
        yield
        database.pgconn.exit_pipeline_mode()
    except BaseException:
        database.close()  # nobody knows any more which answer belongs to what
        raise


def _results(database: Connection[Any], num_commands: int) -> PQGen[list[pq.abc.PGresult]]:
    """Return the result of each command, and if the commit that the Sync brings failed, that one's."""
    yield from generators.send(database.pgconn)
    results: list[pq.abc.PGresult] = []
    for _ in range(num_commands):
        found = yield from generators.fetch_many(database.pgconn)
        results += found[-1:]
    found = yield from generators.fetch_many(database.pgconn)
    while found and found[-1].status != ExecStatus.PIPELINE_SYNC:
        results += found[-1:]  # a commit that is the Sync's may fail: keys are checked in it
        found = yield from generators.fetch_many(database.pgconn)
    if not found:
        raise OperationalError("the server closed the connection; whether it committed nobody knows")
    return results


def _fail(session: _Session, prepares: bytes, result: pq.abc.PGresult, database: Connection[Any]) -> None:
    """Raise what the first failure means; the rest was skipped."""
    error = error_from_result(result, database.info.encoding)
    if isinstance(error, DivisionByZero):
        raise Divided from error
    if isinstance(error, InvalidSqlStatementName):
        log.warning("prepared statements are gone; behind a pooler, let it keep sessions: %s", error)
        session.names.clear()
        raise Forgotten from error
    if prepares and isinstance(error, DuplicatePreparedStatement):
        log.warning("a statement was prepared already; behind a pooler, let it keep sessions: %s", error)
        session.names.add(prepares)  # by its name it is the same one
        raise Forgotten from error
    raise error


@contextmanager
def _logged(statements: Sequence[Statement], rest: str) -> Iterator[None]:
    """Where Django notes what is asked of the database, note this as one."""
    if not connection.queries_logged:
        yield
        return
    began_s = time.monotonic()
    try:
        yield
    finally:
        sql = "; ".join(sql for sql, _ in statements) + rest
        connection.queries_log.append({"sql": sql, "time": f"{time.monotonic() - began_s:.3f}"})


@functools.cache
def _name_of(sql: str) -> bytes:
    """Return a name that means this statement on whatever connection it is known."""
    return b"chat_" + hashlib.sha256(sql.encode()).hexdigest()[:32].encode()


@functools.cache
def _with_dollars(sql: str) -> bytes:
    first, *rest = sql.split("%s")
    return "".join([first, *(f"${number}{part}" for number, part in enumerate(rest, 1))]).replace("%%", "%").encode()
