"""The few statements that every message runs, without what Django does anew for each.

`rows` puts their SQL together once, `transactions` sends the writes of a transaction in one round trip where the
database can (`pipelined`), `plain` runs one of them. Knows no tables.
"""

from chatproject.statements.pipelined import OutcomeUnknown
from chatproject.statements.plain import execute, execute_all, execute_one
from chatproject.statements.rows import change, get, insert, insert_values, lock, update, values
from chatproject.statements.transactions import (
    Unmet,
    at_once,
    is_together,
    must_be,
    must_write,
    step_by_step,
    together,
)

__all__ = [
    "OutcomeUnknown", "Unmet", "at_once", "change", "execute", "execute_all", "execute_one", "get", "insert",
    "insert_values", "is_together", "lock", "must_be", "must_write", "step_by_step", "together", "update", "values",
]  # fmt: skip
