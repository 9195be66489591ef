"""Connections to PostgreSQL that give up a server which answers nothing.

libpq waits for ever. TCP's limits see a host that is gone, not a server that stands still: its kernel acknowledges
what nobody reads. What serves people says `limit_answers` at its start; a migration may take as long as it takes.
"""

from __future__ import annotations

import select
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen

ANSWER_S: Final = 20.0  # as long as SQLite waits for its lock
INTERVAL_S: Final = 0.1  # psycopg's own, between two looks for an interrupt
Found = TypeVar("Found")

_limit_s: float | None = None


def limit_answers(limit_s: float | None = ANSWER_S) -> None:
    """Let no connection of this process wait longer than that for one answer; None is for ever."""
    global _limit_s
    _limit_s = limit_s


class Connection(psycopg.Connection[Any]):
    """Psycopg's, but it is closed, and says OperationalError, where nothing of an answer comes in time.

    What was asked may still be done: a lost COMMIT looks the same. An answer that has begun to come may take its time.
    """

    def wait(self, gen: PQGen[Found], interval: float = INTERVAL_S, timeout: float | None = None) -> Found:
        """Return what ``gen`` does. A ``timeout`` of the caller's own is the caller's to handle, as ever."""
        if timeout is not None or _limit_s is None:
            return super().wait(gen, interval, timeout)
        while True:
            try:
                return super().wait(gen, interval, _limit_s)
            except psycopg.errors._WaitTimeout as error:
                if self._has_news():
                    continue  # it was this process that stood still, or the network is thin
                self.close()  # an answer that comes late would be taken for that of the next question
                raise psycopg.OperationalError(f"the database has not answered for {_limit_s:g} s") from error

    def _has_news(self) -> bool:
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return bool(poll.poll(0))


# Django's options of the pool.
POOL: Final[dict[str, Any]] = {
    # A web process's eight threads of the chat, and the one that looks after its sockets, keep theirs
    # (`kept_connection`); eight more are for all else.
    "min_size": 1, "max_size": 17, "timeout": 10, "connection_class": Connection,
    # Then the next who asks begins a new try. The pool's own come 1, 2, 4, ... 64 s apart, and all wait for them.
    "reconnect_timeout": 1,
}  # fmt: skip
