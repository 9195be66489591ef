"""What happened, in order: everything users saw and the nemesis did, one JSON object a line.

Times are seconds of this machine's monotonic clock since the run began.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO


class History:
    """Written to by one event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def note(self, what: str, /, **fields: Any) -> float:
        """Write a line; return its time."""
        at = self.now
        self._file.write(json.dumps({"t": round(at, 4), "what": what, **fields}, ensure_ascii=False) + "\n")
        return at

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()
