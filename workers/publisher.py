"""Log first, then show: writes every frame to its generation's log, then sends it to the web processes that watch.

One thread, which waits for words of the others and for the time of the next frame. A turn costs one call: all
appends, and when Redis took them all, one channel message per web process. If it did not, those that it took are shown
by messages of their own. Redis away: the engine goes on, everything stays in memory and is written when it is back. A
log that is gone or shorter is written again from memory; one that a newer run holds makes us drop the sequence. A
generation is remembered until `records` has stored it.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from chatproject.contract import frames
from chatproject.contract.frames import Frame
from chatproject.contract.messages import Lease
from workers.channels import Channels
from workers.engine.interfaces import StepOutput
from workers.generation import ActiveGeneration
from workers.store import AWAY, Renewal, Store

log = logging.getLogger(__name__)
RETRY_S: Final = 1.0
STORE_AGAIN_S: Final = 2.0  # twice as much each time ...
STORE_LATE_S: Final = 16.0  # ... up to this
SHUTDOWN_S: Final = 5.0
# A window's streams go in companies, each one write and one message; in many only when they would be large.
COMPANIES: Final = (3, 6)
COMPANY: Final = 64
AT_ONCE: Final = 128  # streams in a call: with hundreds, the first would wait for the last
# Bytes of messages that go with the logs. After an outage there may be megabytes, on which no write must depend.
ALONG: Final = 65_536
# So begins what a Redis says whose disk, memory or replicas do not let it write: it is away for a while.
REFUSALS: Final = ("MISCONF", "OOM", "NOREPLICAS", "READONLY")


class Outside(Protocol):
    """What the publisher asks of the rest of the worker; called in its thread."""

    def drop(self, generation_id: str, run: int) -> None:
        """Forget a sequence: another run has the generation now, or its row is gone."""

    def cancel(self, generation_id: str, run: int) -> None:
        """End a sequence within a step; its end comes back as an output."""

    def ask_to_store(self, generation_id: str) -> None:
        """Ask `records` to store an end. Returns at once; may fail, it is asked again."""

    def ring(self, active: ActiveGeneration) -> None:
        """Send a ticket for a generation that was handed back. Returns at once; may fail."""


class Publisher:
    """Owns every ActiveGeneration, in its own thread. Public methods may be called from any thread."""

    def __init__(self, *, redis_url: str, flush_ms: float, outside: Outside) -> None:
        self._store = Store(redis_url)
        self._channels = Channels(redis_url)
        self._flush_s = flush_ms / 1000
        self._outside = outside
        self._active: dict[str, ActiveGeneration] = {}
        self._by_sequence: dict[str, ActiveGeneration] = {}  # the same, for what comes with every token
        self._begun: deque[ActiveGeneration] = deque()
        self._outputs: deque[Sequence[StepOutput]] = deque()
        self._ended: Sequence[ActiveGeneration] = ()  # of the active ones, when a turn began
        self._handing_back: dict[str, ActiveGeneration] = {}
        self._words: SimpleQueue[Callable[[], None]] = SimpleQueue()  # to be said in the thread
        self._retry_at = self._next_at = 0.0
        self._turned_at = time.monotonic()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = SHUTDOWN_S) -> None:
        """Write and send what is left, then end the thread."""
        self._call(self._stop)
        self._thread.join(timeout_s)

    # --- from other threads

    def begin(self, active: ActiveGeneration) -> None:
        """Take over a claimed generation; call before its sequence is submitted."""
        self._begun.append(active)
        self._call(self._take_begun)

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        """Take the outputs of one engine step. Called in the engine thread."""
        self._outputs.append(outputs)
        if len(self._outputs) <= 1:  # else a word is on its way; none left: taken this moment, in a turn that may end
            self._words.put(_wake)

    def watch(self, generation_id: str, channel: str) -> None:
        """Send the frames of a generation to one more web process from now on."""
        self._call(self._watch, generation_id, channel)

    def on_renewals(self, answers: Iterable[tuple[str, int, Renewal]], *, asked_at: float) -> None:
        """Take what Redis said of the leases: (generation id, run, renewal) each, asked for at ``asked_at``."""
        self._call(self._renewals, list(answers), asked_at)

    def hand_back(self, generation_id: str, run: int) -> None:
        """Write what is there, then give the generation back to the queue. Its sequence was dropped before."""
        self._call(self._hand_back_later, generation_id, run)

    def leases(self) -> list[tuple[str, Lease]]:
        """Return the lease of every generation not stored yet."""
        return [(active.id, active.claim.lease) for active in list(self._active.values())]

    def stood_still_s(self) -> float:
        """Return for how long its thread has done nothing. While it has generations, renewals are told each second."""
        return time.monotonic() - self._turned_at

    def is_settled(self) -> bool:
        """Whether nothing is left to write, to hand back or to store."""
        return not self._handing_back and not self._outputs and not self._begun and not self._active

    # --- the loop

    def _call(self, method: Callable[..., None], *args: Any) -> None:
        self._words.put(functools.partial(method, *args))

    def _run(self) -> None:
        while True:
            self._hear(max(0.0, self._next_at - time.monotonic()))
            self._turned_at = time.monotonic()
            try:
                self._turn()
            except Exception:
                log.exception("publisher")
                time.sleep(0.1)
            if self._is_stopping and not any(active.has_news for active in self._active.values()):
                return

    def _hear(self, wait_s: float) -> None:
        """Do what others said, all of it; if nobody has said anything, wait for the first word, but only so long."""
        try:
            word = self._words.get(block=wait_s > 0, timeout=None if wait_s == math.inf else wait_s)
            while True:
                try:
                    word()
                except Exception:
                    log.exception("publisher")
                word = self._words.get_nowait()
        except Empty:
            return

    def _turn(self) -> None:
        self._take_outputs()
        now = time.monotonic()
        due = self._due(now)
        for start in range(0, len(due), AT_ONCE):
            self._tell(due[start : start + AT_ONCE])
        self._finish_hand_backs()
        self._ask_to_store(now)

    def _tell(self, due: Sequence[ActiveGeneration]) -> None:
        """Write what is there by now, then show it."""
        self._take_outputs()
        due = [active for active in due if self._active.get(active.id) is active]
        for active in due:
            active.cut()
        writing = [active for active in due if active.num_logged < len(active.entries)]
        is_shown = False
        if writing and time.monotonic() >= self._retry_at:
            messages = self._messages(due)
            goes_along = sum(len(message) for _, message in messages) <= ALONG
            is_shown = self._write(writing, messages if goes_along else []) and goes_along
        if any(active.num_logged < len(active.entries) for active in writing):
            self._next_at = min(self._next_at, self._retry_at)
        if is_shown:
            self._note_shown(due)
        else:
            self._show(due)

    def _due(self, now: float) -> list[ActiveGeneration]:
        """Return those whose news may be told; note when the next ones are due, infinity when only a word makes it so.

        The first token goes at once, then one frame per window. Notes those that have ended, too: among
        hundreds, one walk over all of them is enough.
        """
        due, ended, next_at, handing_back = [], [], math.inf, self._handing_back
        for active in self._active.values():
            due_at = active.due_at
            if active.end is not None:
                ended.append(active)
            elif due_at > now and not (handing_back and active.id in handing_back):
                if due_at < next_at:
                    next_at = due_at  # it may have no news then; a company has one time for all
                continue
            if active.has_news or active.unsent:
                due.append(active)
        self._next_at, self._ended = next_at, ended
        return due

    def _take_outputs(self) -> None:
        while self._outputs:
            outputs = self._outputs.popleft()
            # Whoever begins is there before its first output. Its call may still wait: this thread was in a slow write.
            self._take_begun()
            for output in outputs:
                active = self._by_sequence.get(output.sequence_id)
                if active is not None:
                    active.take(output)

    def _write(self, writing: Sequence[ActiveGeneration], messages: Sequence[tuple[str, bytes]]) -> bool:
        """Write what is there by now; say whether Redis took it all, and sent the messages after it."""
        writes = [
            (active.id, active.run, active.last_logged_id, active.entries[active.num_logged :]) for active in writing
        ]
        sizes = [len(active.entries) for active in writing]
        try:
            answers = self._store.append(writes, messages)
        except AWAY as error:
            self._retry_at = time.monotonic() + RETRY_S
            log.warning("Redis is away, %d generations go on in memory: %r", len(writing), error)
            return False
        for active, size, answer in zip(writing, sizes, answers, strict=True):
            self._judge(active, size, answer)
        return all(answer == "ok" for answer in answers)

    def _judge(self, active: ActiveGeneration, size: int, answer: str) -> None:
        if answer == "ok":
            active.num_logged, active.logged_at = size, time.monotonic()
        elif answer == "gone":
            log.warning("the log of %s is gone; it is written again from memory", active.id)
            active.restart_log()
            self._next_at = 0.0
        elif answer.startswith("short:"):
            known = active.num_logged
            if not active.rewind(answer.removeprefix("short:")) or active.num_logged == known:
                log.warning("the log of %s is not this run's any more", active.id)
                self._lose(active)
            self._next_at = 0.0
        elif answer in ("newer", "ended"):
            self._lose(active)
        else:
            why = answer.removeprefix("failed:")
            level = logging.WARNING if why.startswith(REFUSALS) else logging.ERROR
            log.log(level, "the log of %s takes nothing: %s", active.id, why)
            self._retry_at = time.monotonic() + RETRY_S

    def _show(self, due: Sequence[ActiveGeneration]) -> None:
        """Send what Redis has taken."""
        ready = [active for active in due if active.num_logged == len(active.entries) and active.id in self._active]
        for channel, message in self._messages(ready):
            try:
                self._channels.send(channel, message)
            except AWAY as error:
                log.warning("%s reads from the log instead: %r", channel, error)
        self._note_shown(ready)

    def _messages(self, due: Sequence[ActiveGeneration]) -> list[tuple[str, bytes]]:
        """Return what shows all that was not sent yet: one message per web process."""
        by_channel: dict[str, list[Frame]] = {}
        for active in due:
            for channel in active.channels:
                by_channel.setdefault(channel, []).extend(active.unsent)
        return [
            (channel, self._channels.form(frames.channel_message(unsent)))
            for channel, unsent in by_channel.items()
            if unsent
        ]

    def _note_shown(self, shown: Sequence[ActiveGeneration]) -> None:
        # On a grid: streams that are shown together stay together, in a few companies of which each is one message.
        few, many = COMPANIES
        grid_s = self._flush_s / min(many, max(few, len(self._active) // COMPANY))
        due_at = math.ceil((time.monotonic() + self._flush_s) / grid_s) * grid_s if grid_s else 0.0
        for active in shown:
            frames_shown = active.shown()
            if frames_shown and frames_shown[-1].kind == "delta":  # whatever comes after `started` is one
                active.due_at = due_at

    def _ask_to_store(self, now: float) -> None:
        for active in self._ended:
            if active.num_logged < len(active.entries) or self._active.get(active.id) is not active:
                continue
            if now >= active.ask_to_store_at:
                # Rarer from time to time: who is asked may only be slow, and each word makes the line longer.
                active.ask_to_store_at = now + min(STORE_AGAIN_S * 2**active.num_asked, STORE_LATE_S)
                active.num_asked += 1
                self._outside.ask_to_store(active.id)
            self._next_at = min(self._next_at, active.ask_to_store_at)

    def _finish_hand_backs(self) -> None:
        # While frames were being sent, outputs may have come that belong before a hand-back.
        self._take_outputs()
        for active in list(self._handing_back.values()):
            active.cut()
            if active.num_logged < len(active.entries):
                continue  # written at the next flush, handed back after it
            try:
                answer = self._store.hand_back(active.claim)
            except AWAY as error:
                log.warning("%s is left to its lease: %r", active.id, error)
                answer = "lost"
            del self._handing_back[active.id]
            if answer == "cancelled":
                active.cancel()
                self._next_at = 0.0
            else:
                self._forget(active)
                if answer == "waiting":
                    self._outside.ring(active)

    # --- words from outside, in the thread

    def _take_begun(self) -> None:
        while self._begun:
            active = self._begun.popleft()
            earlier = self._active.get(active.id)
            if earlier is not None:  # its lease lapsed, and this worker claimed it again
                self._lose(earlier)
            self._active[active.id] = self._by_sequence[active.sequence_id] = active

    def _forget(self, active: ActiveGeneration) -> bool:
        """Let go of one, whatever was to become of it; say whether it was there. A newer run of the same stays."""
        if self._active.get(active.id) is not active:
            return False
        del self._active[active.id], self._by_sequence[active.sequence_id]
        self._handing_back.pop(active.id, None)
        return True

    def _watch(self, generation_id: str, channel: str) -> None:
        active = self._active.get(generation_id)
        if active is not None:
            active.channels[channel] = None

    def _hand_back_later(self, generation_id: str, run: int) -> None:
        active = self._active.get(generation_id)
        if active is not None and active.run == run and active.end is None:
            active.cut()
            self._handing_back[generation_id] = active

    def _renewals(self, answers: Sequence[tuple[str, int, Renewal]], asked_at: float) -> None:
        for generation_id, run, renewal in answers:
            active = self._active.get(generation_id)
            if active is None or active.run != run:
                continue
            if renewal.verdict == "stored":
                self._forget(active)
                if active.end is None:
                    self._outside.drop(generation_id, run)
            elif renewal.verdict == "lost":
                self._lose(active)
            else:
                if renewal.verdict == "cancel" and active.end is None:
                    self._outside.cancel(generation_id, run)
                if active.logged_at < asked_at:  # else Redis may have spoken of the log as it was before
                    self._compare(active, renewal.last_id)

    def _compare(self, active: ActiveGeneration, last_id: str) -> None:
        """See a log that lost entries although nothing is being written; the next append has the last word."""
        if not last_id and active.num_logged:
            active.restart_log()
        elif last_id and last_id != active.last_logged_id:
            # From the newest: it is what was written while the lease was on its way, or the log has lost a little.
            known = (index for index in range(active.num_logged - 1, -1, -1) if active.entries[index][0] == last_id)
            active.num_logged = next(known, active.num_logged - 1) + 1

    def _lose(self, active: ActiveGeneration) -> None:
        """Another run has it, or it has ended without us: drop the sequence and say nothing more."""
        if self._forget(active):
            self._outside.drop(active.id, active.run)

    def _stop(self) -> None:
        self._is_stopping = True


def _wake() -> None:
    """A word that says nothing."""
