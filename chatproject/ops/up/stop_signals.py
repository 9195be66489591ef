"""Ctrl-C, SIGTERM and SIGHUP, counted: the first asks to stop in order, the second to stop now."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType
from typing import Self

_ASK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Counts requests to stop, and wakes the waiting supervisor for them and for children that end.

    Use as a context manager in the main thread.
    """

    def __init__(self) -> None:
        self.count = 0
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def __enter__(self) -> Self:
        for number in _ASK:
            signal.signal(number, self._on_ask)
        # A handler of its own, or the end of a child would not wake the wait.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.set_wakeup_fd(-1)
        for number in (*_ASK, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)

    def wait(self, timeout_s: float) -> None:
        """Return after the time, or at once when a signal came."""
        readable, _, _ = select.select([self._read], [], [], timeout_s)
        if readable:
            os.read(self._read, 4096)

    def _on_ask(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
