"""One line per measurement: a ratio with its range, the goal, and what was checked."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured ratio."""

    what: str
    against: str
    ratio: str
    goal: str
    note: str = ""


def median_and_range(ratios: Sequence[float]) -> str:
    """Return ``4.8x (4.6-5.1)``."""
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"


def failed(what: str, error: Exception) -> Row:
    """Return the row of what could not be measured."""
    reason = f"missing: {error.name}" if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
    return Row(what=what, against="-", ratio="FAILED", goal="-", note=reason)


def show(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| what | against | ratio, median (range) | goal | note |", "|---|---|---|---|---|"]
    lines += [f"| {row.what} | {row.against} | {row.ratio} | {row.goal} | {row.note} |" for row in rows]
    return "\n".join(lines)
