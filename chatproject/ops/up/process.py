"""One child process: how it is started, when it is tried again, how it is stopped.

Knows no Redis and no Django. Each child leads a session of its own, so that a Ctrl-C at the terminal reaches the
supervisor alone and the order of stopping is ours; and it dies with the supervisor, even a killed one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from chatproject.ops.up.parent_death import die_with_parent
from chatproject.ops.up.spare import Spare

Role = Literal["redis", "web", "worker", "records", "flower"]

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 30.0
ASK_EVERY_S: Final = 5.0  # those that are ready and may hang
# Up for so long: the next end starts the back-off from the beginning. With a minute, a `kill -9` each half minute kept
# records away for 25 s, and with it every answer whose worker had died.
STEADY_S: Final = 10.0
_MANY: Final = 10
_LOG_BYTES: Final = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a probe saw."""

    is_ready: bool
    detail: str = ""  # while it is not: what it is doing


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One process that is to run."""

    role: Role
    name: str  # unique; names the log
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)  # holds secrets
    directory: Path
    log: Path
    probe: Callable[[], Status]  # asked until it is ready; must return within a second or two
    grace_s: float  # between the request to stop and SIGKILL
    # One that was ready and has not been so for this long is killed and started again; None: the probe asks others too,
    # whose absence is not its fault.
    hang_s: float | None = None
    is_essential: bool = True  # start fails without it; a worker may come later
    # Called when it has ended, before it is started again; must return within a second or two and never raise.
    on_end: Callable[[], object] = lambda: None
    spare: Spare | None = None  # may take the place of one that died; runs the command's arguments from the third on
    # Redis is let write its log to the end; the others hold nothing that is not in Redis or the database.
    death_signal: signal.Signals = signal.SIGKILL


class Process:
    """A child and its restarts. Owned by one thread: the death signal is bound to the one that forks."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.is_ready = False
        self.was_ready = False  # in an earlier life, when it is not now
        self.detail = "starting"  # what the probe said last
        self.ends = 0  # since it was last ready or steady
        self.started_at = 0.0
        self.retry_at: float | None = 0.0
        self._asked_at = self._answered_at = 0.0
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Return the process id while it runs."""
        return self._popen.pid if self._popen is not None else None

    def start(self, now: float) -> None:
        """Start the child. Raises OSError when the system has no room for it; `put_off` says when to try again."""
        with contextlib.suppress(OSError):  # no room for the old copy: the log grows on
            rotate(self.spec.log)
        self.started_at, self.retry_at, self.is_ready = now, None, False
        self._popen = self._take_spare()
        if self._popen is not None:
            return
        descriptor = os.open(self.spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._popen = subprocess.Popen(
                self.spec.command,
                env=dict(self.spec.environment),
                cwd=self.spec.directory,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
                preexec_fn=die_with_parent(self.spec.death_signal),
            )
        finally:
            os.close(descriptor)

    def _take_spare(self) -> subprocess.Popen[bytes] | None:
        spec = self.spec
        if spec.spare is None:
            return None
        return spec.spare.take(arguments=spec.command[3:], environment=spec.environment, log=spec.log)

    def ended(self, now: float) -> int | None:
        """Return the exit status when the child has ended since the last look, and plan the next start."""
        if self._popen is None or self._popen.poll() is None:
            return None
        status = self._popen.returncode
        _signal_group(self._popen.pid, signal.SIGKILL)  # what it may have left behind
        self._popen = None
        if now - self.started_at >= STEADY_S:
            self.ends = 0
        # A child that says its configuration is wrong will say so again: the environment is read once, at our start.
        self.put_off(now, ends=_MANY if status == os.EX_CONFIG else self.ends + 1)
        self.was_ready, self.is_ready = self.was_ready or self.is_ready, False
        return status

    def put_off(self, now: float, *, ends: int | None = None) -> None:
        """Plan the next start, the later the more often it ended."""
        self.ends = self.ends + 1 if ends is None else ends
        self.retry_at = now + min(FIRST_DELAY_S * 4.0 ** (self.ends - 1), LONGEST_DELAY_S)

    def ask_ready(self) -> bool:
        """Ask the probe; once it says ready, this is ready until the child ends."""
        status = self.spec.probe()
        self.is_ready, self.detail = status.is_ready, status.detail
        self._asked_at = self._answered_at = time.monotonic()
        return self.is_ready

    def kill_if_hanging(self) -> bool:
        """Ask one that is ready whether it still answers, now and then; say whether it has just been killed."""
        hang_s = self.spec.hang_s
        if hang_s is None or time.monotonic() - self._asked_at < min(ASK_EVERY_S, hang_s / 4):
            return False
        is_ready = self.spec.probe().is_ready
        self._asked_at = time.monotonic()
        if is_ready:
            self._answered_at = self._asked_at
        if self._asked_at - self._answered_at < hang_s:
            return False
        self.kill()
        return True

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the child; what it started itself is its own to stop."""
        self.retry_at = None
        if self._popen is not None:
            self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the child's whole group."""
        self.retry_at = None
        if self._popen is not None:
            _signal_group(self._popen.pid, signal.SIGKILL)

    def is_gone(self) -> bool:
        """Say whether the child has ended; also reaps it and kills what it left in its group."""
        if self._popen is not None and self._popen.poll() is not None:
            _signal_group(self._popen.pid, signal.SIGKILL)
            self._popen = None
        return self._popen is None


def rotate(log: Path) -> None:
    """Put a log that has grown large aside; one old copy is kept. Writers append, so truncating is safe."""
    try:
        if log.stat().st_size <= _LOG_BYTES:
            return
    except FileNotFoundError:
        return
    log.with_suffix(".log.1").write_bytes(log.read_bytes())
    os.truncate(log, 0)


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return
