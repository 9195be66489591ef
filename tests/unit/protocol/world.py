"""Virtual time, and processes that can be paused or die at every call of Redis.

Each thread of the service is a greenlet here: the product's own code runs in it, unchanged, and gives way where it
would wait or talk to Redis. One seed gives one history, on any machine. Knows nothing of chats.
"""

from __future__ import annotations

import contextvars
import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

import greenlet

EPOCH_MS = 1_700_000_000_000  # of virtual second 0; before the deadline of every message


class Killed(greenlet.GreenletExit):
    """The process of this thread is no more; no product code may catch it."""


class Process:
    """Some threads that live and die together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.paused_until = 0.0
        self.calls_to_live: int | None = None  # a trap: dies at that call of Redis; a negative one: after it was done


class Thread:
    """One line of execution of a process."""

    def __init__(self, process: Process, run: Callable[[], Any], hub: greenlet.greenlet) -> None:
        self.process = process
        self.greenlet = greenlet.greenlet(run, parent=hub)
        # Django keeps its connection in a context; all here share the one of the test.
        self.greenlet.gr_context = contextvars.copy_context()


class World:
    """Runs threads in the order of virtual time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.current: Thread | None = None
        self._due: list[tuple[float, int, Thread]] = []
        self._count = itertools.count()
        self._threads: list[Thread] = []
        self._hub = greenlet.getcurrent()

    @property
    def now_ms(self) -> int:
        return EPOCH_MS + int(self.now * 1000)

    def monotonic(self) -> float:
        """Stand in for `time.monotonic` where the product's module is told to use it."""
        return 1000.0 + self.now

    def spawn(self, process: Process, run: Callable[[], Any], *, after_s: float = 0.0) -> None:
        """Start a thread of a process."""
        thread = Thread(process, run, self._hub)
        self._threads.append(thread)
        self._push(thread, after_s)

    def sleep(self, seconds: float) -> None:
        """Let others run for so long. Raises Killed when the process died meanwhile."""
        thread = self.current
        assert thread is not None, "only threads of this world may wait"
        if not thread.process.is_alive:
            raise Killed
        self._push(thread, seconds)
        self._hub.switch()
        if not thread.process.is_alive:
            raise Killed

    def kill(self, process: Process) -> None:
        """End a process: its threads find out where they wait."""
        process.is_alive = False

    def run(self, *, until: Callable[[], bool], limit_s: float) -> None:
        """Go on until that is so, or for so long."""
        try:
            while self._due and self._due[0][0] < limit_s and not until():
                self.now, _, thread = heapq.heappop(self._due)
                process = thread.process
                if process.is_alive and process.paused_until > self.now:
                    self._push(thread, process.paused_until - self.now)
                    continue
                self._resume(thread)
        finally:
            self._end()

    def _push(self, thread: Thread, after_s: float) -> None:
        heapq.heappush(self._due, (self.now + after_s, next(self._count), thread))

    def _resume(self, thread: Thread) -> None:
        self.current = thread
        try:
            if thread.process.is_alive:
                thread.greenlet.switch()
            else:
                thread.greenlet.throw(Killed)
        finally:
            self.current = None

    def _end(self) -> None:
        for thread in self._threads:
            thread.process.is_alive = False
            if not thread.greenlet.dead:
                self._resume(thread)


class Event:
    """Stands in for a threading.Event that a loop waits on between its turns, and that nobody sets."""

    def __init__(self, world: World) -> None:
        self._world = world

    def wait(self, seconds: float) -> bool:
        self._world.sleep(seconds * self._world.random.uniform(0.8, 1.2))
        return False

    def set(self) -> None:
        """Do nothing."""
