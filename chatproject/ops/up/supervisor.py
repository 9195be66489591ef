"""Keeps processes running: starts them, asks until they are ready, starts again what ends, stops all in order.

Knows specs, not services. Everything happens in the main thread: the signal that ties a child to its parent's death
is bound to the thread that forks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final

from chatproject.ops.up.errors import StartFailed, StopRequested
from chatproject.ops.up.log_tail import LogTail, last_lines
from chatproject.ops.up.process import Process, Role, Spec
from chatproject.ops.up.stop_signals import StopSignals

# First nobody may ask any more; then what was asked is answered; then the answers are stored; Redis carries all of it.
STOP_ORDER: Final[tuple[Role, ...]] = ("web", "worker", "records", "flower", "redis")
_TRIES = 3  # ends before it was ever ready: an essential process then fails the start
_LOOK_S = 0.25
_REMIND_S = 5.0


class Supervisor:
    """The processes of one `up`."""

    def __init__(self, signals: StopSignals, *, say: Callable[[str], None]) -> None:
        self._signals = signals
        self._say = say
        self._processes: list[Process] = []
        self._tails: dict[str, LogTail] = {}
        self._on_change: Callable[[], None] = lambda: None
        self._is_told = True
        self._trouble = ""  # of the last time that nobody could be told

    def pids(self) -> dict[str, list[int]]:
        """Return the process ids by role; every role is there."""
        found: dict[str, list[int]] = {role: [] for role in STOP_ORDER}
        for process in self._processes:
            if process.pid is not None:
                found[process.spec.role].append(process.pid)
        return found

    def not_ready(self) -> list[str]:
        """Return the names of those that are not ready."""
        return [process.spec.name for process in self._processes if not process.is_ready]

    def start(self, specs: Sequence[Spec]) -> None:
        """Start processes and wait until each is ready.

        Raises StartFailed when an essential one keeps ending, StopRequested at Ctrl-C. One that is not essential may
        stay behind; it is tried again and again.
        """
        started = [Process(spec) for spec in specs]
        for process in started:
            self._tails[process.spec.name] = LogTail(process.spec.log)
            self._processes.append(process)
            process.start(time.monotonic())
        reminded_at = began_at = time.monotonic()
        while True:
            self._look()
            waiting = [process for process in started if self._is_awaited(process)]
            if not waiting:
                return
            now = time.monotonic()
            if now - reminded_at >= _REMIND_S:
                reminded_at = now
                details = ", ".join(f"{process.spec.name} ({process.detail})" for process in waiting)
                self._say(f"{now - began_at:4.0f} s  waiting for {details}")
            self._signals.wait(_LOOK_S)
            if self._signals.count:
                raise StopRequested("Stopped before everything was ready.")

    def watch(self, on_change: Callable[[], None]) -> None:
        """Restart what ends until a signal asks to stop; ``on_change`` hears of every new process id."""
        self._on_change = on_change
        while not self._signals.count:
            self._look()
            if not self.not_ready():
                for spare in {process.spec.spare for process in self._processes if process.spec.spare is not None}:
                    with contextlib.suppress(OSError):  # a luxury: without it the next start takes longer
                        spare.ensure()  # not before: it would slow down what people wait for
            self._signals.wait(self._pause_s())

    def stop(self) -> None:
        """Stop all, role by role; one that outlives its grace is killed. A second signal kills at once."""
        self._on_change = lambda: None
        for process in self._processes:
            if process.spec.spare is not None:
                process.spec.spare.stop()
        for role in STOP_ORDER:
            members = [process for process in self._processes if process.spec.role == role]
            if any(not process.is_gone() for process in members):
                self._say(f"stopping {role}")
            for process in members:
                process.ask_to_stop()
            deadline = time.monotonic() + max((process.spec.grace_s for process in members), default=0)
            while waiting := [process for process in members if not process.is_gone()]:
                # Redis writes its log to the end even then; it takes a moment.
                is_forced = self._signals.count >= 2 and role != "redis"
                if is_forced or time.monotonic() > deadline:
                    names = ", ".join(process.spec.name for process in waiting)
                    self._say(f"killing {names}" + ("" if is_forced else ": it did not stop in time"))
                    for process in waiting:
                        process.kill()
                self._signals.wait(_LOOK_S)
            for process in members:
                process.spec.on_end()

    def _pause_s(self) -> float:
        """Return how long nothing needs to be looked at; the end of a child wakes us anyway."""
        pause_s = _LOOK_S if any(not process.is_ready for process in self._processes) else 1.0
        waiting = [process.retry_at - time.monotonic() for process in self._processes if process.retry_at is not None]
        return max(0.0, min([pause_s, *waiting]))

    def _is_awaited(self, process: Process) -> bool:
        return not process.is_ready and (process.spec.is_essential or process.ends < _TRIES)

    def _look(self) -> None:
        for process in self._processes:
            spec, now = process.spec, time.monotonic()  # a probe takes its time
            for line in self._tails[spec.name].warnings():
                self._say(f"{spec.name}: {line}")
            status = process.ended(now)
            if status is not None:
                spec.on_end()
                self._report_end(process, status)
                self._is_told = False
            if process.retry_at is not None and now >= process.retry_at:
                self._start_again(process, now)
                self._is_told = False
            if process.pid is not None and not process.is_ready and process.ask_ready():
                again = " again" if process.was_ready else ""
                self._say(f"{time.monotonic() - process.started_at:4.1f} s  {spec.name} is ready{again}")
            elif process.is_ready and process.kill_if_hanging():
                self._say(f"{spec.name} has not answered for {spec.hang_s:.0f} s and is killed")
        self._tell()

    def _start_again(self, process: Process, now: float) -> None:
        try:
            process.start(now)
        except OSError as error:  # A full disk must not end those that run.
            process.put_off(now)
            self._say(f"{process.spec.name} cannot be started now: {error}")

    def _tell(self) -> None:
        if self._is_told:
            return
        try:
            self._on_change()
            self._is_told = True
        except OSError as error:  # told again at the next look
            if self._trouble != str(error):
                self._trouble = str(error)
                self._say(f"the change of a process id cannot be told: {error}")

    def _report_end(self, process: Process, status: int) -> None:
        spec = process.spec
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        if spec.is_essential and not process.was_ready and process.ends >= _TRIES:
            raise StartFailed(
                f"{spec.name} cannot be started: it {how} {_TRIES} times. From {spec.log}:\n{last_lines(spec.log)}"
            )
        again_s = max(0.0, (process.retry_at or 0.0) - time.monotonic())
        self._say(f"{spec.name} {how}; starting it again in {again_s:.1f} s. Its last words, in {spec.log}:")
        self._say(last_lines(spec.log, 1))
