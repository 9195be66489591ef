"""A process that has imported all a worker needs and waits: it takes the place of one that died, within a second.

Importing torch takes longer than everything else between a `kill -9` and the next token. A spare holds no model and no
connection, and becomes the worker itself: there is no fork, so nothing that an import started is in a wrong state.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from chatproject.ops.up.parent_death import die_with_parent

_AGAIN_S: Final = 60.0  # after one that ended by itself: its log says why


class Spare:
    """At most one waiting process. Owned by the supervisor's thread: its children die with that."""

    def __init__(self, *, command: tuple[str, ...], environment: Mapping[str, str], directory: Path, log: Path) -> None:
        self._command = command
        self._environment = environment
        self._directory = directory
        self._log = log
        self._popen: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    @property
    def pid(self) -> int | None:
        """Return the process id of the one that waits."""
        return self._popen.pid if self._popen is not None else None

    def ensure(self) -> None:
        """Start one unless one waits. It reads what to become when it has imported everything."""
        now = time.monotonic()
        if self._popen is not None and (self._popen.poll() is None or now - self._started_at < _AGAIN_S):
            return
        self._started_at = now
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._popen = subprocess.Popen(
                self._command, env=dict(self._environment), cwd=self._directory, stdin=subprocess.PIPE,
                stdout=descriptor, stderr=descriptor, start_new_session=True, preexec_fn=die_with_parent(),
            )  # fmt: skip
        finally:
            os.close(descriptor)

    def take(
        self, *, arguments: tuple[str, ...], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes] | None:
        """Let the waiting process become a worker, and return it. None when there is none: start one as usual."""
        popen, self._popen = self._popen, None
        if popen is None or popen.poll() is not None or popen.stdin is None:
            return None
        word = {"arguments": arguments, "environment": dict(environment), "log": str(log)}
        try:
            with popen.stdin as stdin:
                stdin.write(json.dumps(word).encode() + b"\n")
        except OSError:  # it died just now
            popen.kill()
            popen.wait()
            return None
        return popen

    def stop(self) -> None:
        """End the one that waits; it holds nothing."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
            self._popen = None
