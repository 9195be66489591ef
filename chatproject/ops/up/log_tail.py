"""Follows the logs of the processes and picks what an operator should see at once: warnings and worse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_SEEN: Final = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")
# True of every start, and nothing to act upon: Flower asks before workers are there, Redis would like a kernel setting.
_NOISE: Final = re.compile(r"flower\.inspector|overcommit")
_AT_ONCE: Final = 20  # lines of one look; the rest is in the log


class LogTail:
    """One log, read from where it ended when following began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = path.stat().st_size if path.exists() else 0

    def warnings(self) -> list[str]:
        """Return the new lines that are warnings or worse, at most some at once."""
        try:
            size = self.path.stat().st_size
            if size < self._position:
                self._position = 0  # it was put aside
            if size == self._position:
                return []
            with self.path.open("rb") as file:
                file.seek(self._position)
                block = file.read(256 * 1024)
        except FileNotFoundError:
            return []
        whole, newline, _ = block.rpartition(b"\n")
        if not newline:
            return []
        self._position += len(whole) + 1
        found = [
            line
            for line in whole.decode("utf-8", "replace").splitlines()
            if _SEEN.search(line) and not _NOISE.search(line)
        ]
        if len(found) > _AT_ONCE:
            return [*found[:_AT_ONCE], f"... and {len(found) - _AT_ONCE} more lines in {self.path.name}"]
        return found


def last_lines(path: Path, count: int = 12) -> str:
    """Return the end of a log, for the report of a process that ended."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 16 * 1024))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(f"    {line}" for line in lines[-count:])
