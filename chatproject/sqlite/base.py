"""Django's SQLite backend, but a transaction that waits for another's end looks again within a millisecond.

SQLite sleeps 1, 2, 5, 10, 15, 20, 25 ms between its looks, while a transaction of ours takes 5: with twenty messages a
second, the slowest in a hundred waited 20 ms and more for a lock that was long free. A name that Django looks up.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any, Final

from django.db.backends.sqlite3 import base
from django.utils.asyncio import async_unsafe

# (for so long from the beginning, so far apart), in seconds: a wait for many others must not become their burden.
STEPS: Final = ((0.02, 0.0005), (0.2, 0.002), (float("inf"), 0.01))


class DatabaseWrapper(base.DatabaseWrapper):
    """One connection. Where it writes without a transaction, SQLite's own waiting is as it was.

    The BEGIN itself goes past Django's cursors, so a query log lacks it.
    """

    def get_connection_params(self) -> dict[str, Any]:
        """Return the parameters of `sqlite3.connect`; its timeout is that of a wait for another transaction, too."""
        params: dict[str, Any] = super().get_connection_params()
        self._longest_s = float(params.get("timeout", 5.0))
        return params

    @async_unsafe
    def _start_transaction_under_autocommit(self) -> None:
        self.validate_thread_sharing()
        if self.connection is None or self.transaction_mode != "IMMEDIATE":  # type: ignore[attr-defined]
            super()._start_transaction_under_autocommit()  # type: ignore[misc]
            return
        with self.wrap_database_errors:
            self._begin(self.connection)

    def _begin(self, connection: sqlite3.Connection) -> None:
        began = time.monotonic()
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    waited_s = time.monotonic() - began
                    if not _may_pass(error.sqlite_errorcode) or waited_s > self._longest_s:
                        raise
                    time.sleep(next(step_s for until_s, step_s in STEPS if waited_s < until_s))
                else:
                    return
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(self._longest_s * 1000)}")


def _may_pass(code: int) -> bool:
    # The low byte is the kind of error. No waiting helps a connection that still reads what others have changed since.
    return code & 0xFF == sqlite3.SQLITE_BUSY and code != sqlite3.SQLITE_BUSY_SNAPSHOT
