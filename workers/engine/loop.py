"""Run an engine in a thread of its own: requests come in by a queue, outputs leave by the listener.

The only file of the engine that knows threads and time. Idle, it waits without polling and wakes at the first word.
A watchdog thread sees a step that hangs; what then happens to the process is for ``on_fatal`` to say.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from workers.engine.engine import Engine
from workers.engine.interfaces import EngineStats, Listener, ModelRunner, SequenceRequest, StepOutput
from workers.errors import FatalEngineError, RequestRejected

log = logging.getLogger(__name__)

Word = tuple[Literal["submit"], SequenceRequest] | tuple[Literal["cancel", "drop"], str]


class EngineLoop:
    """Owns the engine and its thread. Every method may be called from any thread."""

    def __init__(
        self,
        runner: ModelRunner,
        *,
        listener: Listener,
        on_fatal: Callable[[BaseException], None],
        step_tokens: int = 256,
        hang_s: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = Engine(runner, listener=_Filter(self, listener), step_tokens=step_tokens, clock=clock)
        self._on_fatal = on_fatal
        self._hang_s = hang_s
        self._changed = threading.Condition()  # guards what follows
        self._words: deque[Word] = deque()
        self._live: set[str] = set()  # submitted, neither ended nor dropped
        self._dropped: set[str] = set()  # dropped, and the engine has not heard it yet
        self._is_stopping = False
        self._stopped = threading.Event()
        self._step_began_s: float | None = None  # monotonic, with what is heard before it; None while it rests
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)

    @property
    def steps(self) -> int:
        """Return how many steps were computed: it grows while there is work and the engine lives."""
        return self._engine.steps

    @property
    def is_alive(self) -> bool:
        """Say whether the engine thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread; what was submitted before begins now."""
        self._thread.start()
        self._watchdog.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """End the thread after the current step. Sequences still there get no event; whoever leased them hands back."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        self._stopped.set()

    def submit(self, request: SequenceRequest) -> None:
        """Hand a request to the engine. Raises RequestRejected when a sequence of that id still lives."""
        with self._changed:
            if request.sequence_id in self._live:
                raise RequestRejected(f"Sequence {request.sequence_id} is already here; wait for its end, or drop it.")
            self._live.add(request.sequence_id)
            self._say(("submit", request))

    def cancel(self, sequence_id: str) -> None:
        """End a sequence within a step; its Finish follows. Unknown ids are ignored: it may have just ended."""
        with self._changed:
            self._say(("cancel", sequence_id))

    def drop(self, sequence_id: str) -> None:
        """Forget a sequence; nothing more is heard of it, not even what the current step gives."""
        with self._changed:
            self._live.discard(sequence_id)
            self._dropped.add(sequence_id)
            self._say(("drop", sequence_id))

    def stats(self) -> EngineStats:
        """Return the engine's counters."""
        return self._engine.stats()

    def _say(self, word: Word) -> None:
        self._words.append(word)
        self._changed.notify()

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._step_began_s = time.monotonic()
                self._hear()
                did_work = self._engine.step()
                self._step_began_s = None
                if not did_work:
                    self._engine.rest(self._wait)
        except Exception as error:
            # Not a request's fault (the engine contains those): half an engine is worse than a new process.
            self._step_began_s = None
            log.critical("The engine cannot go on.", exc_info=True)
            self._on_fatal(error)

    def _wait(self) -> None:
        with self._changed:
            while not self._words and not self._is_stopping:
                self._changed.wait()

    def _hear(self) -> None:
        if not self._words:
            return
        with self._changed:
            words, self._words = self._words, deque()
            # Later drops of the same id concern a later life of it; they are in the next batch of words.
            self._dropped.clear()
        for word in words:
            if word[0] == "submit":
                self._engine.add(word[1])
            elif word[0] == "cancel":
                self._engine.cancel(word[1])
            else:
                self._engine.drop(word[1])

    def _watch(self) -> None:
        while not self._stopped.wait(self._hang_s / 4):
            began_s = self._step_began_s
            if began_s is not None and time.monotonic() - began_s > self._hang_s:
                self._on_fatal(FatalEngineError(f"A step has been running for more than {self._hang_s:g} s."))
                return

    def _heard(self, outputs: Sequence[StepOutput]) -> Sequence[StepOutput]:
        """Return the outputs that may be told: none of a sequence dropped meanwhile."""
        with self._changed:
            if self._dropped:
                outputs = [output for output in outputs if output.sequence_id not in self._dropped]
            for output in outputs:
                if output.finish is not None:
                    self._live.discard(output.sequence_id)
        return outputs


class _Filter:
    """The listener behind a filter for what was dropped while the step ran."""

    def __init__(self, loop: EngineLoop, listener: Listener) -> None:
        self._loop = loop
        self._listener = listener

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        outputs = self._loop._heard(outputs)
        if outputs:
            self._listener.on_step(outputs)
