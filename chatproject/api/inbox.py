"""What one request has heard of its answer and not taken yet. Knows the hub, no HTTP.

Bounded as a socket's outbox is: over the limit for longer than the grace its client is too slow, and is cut off.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from chatproject.api.errors import ApiError
from chatproject.bell import Bell
from chatproject.contract.frames import Frame
from chatproject.generations.streaming.outbox import GRACE_S, LIMIT_BYTES, MOST_BYTES
from chatproject.generations.streaming.reader import Queued, State

_ENTRY_BYTES: Final = 256  # of memory, beside its text
_LOGPROB_BYTES: Final = 160


class Inbox:
    """The hub's reader. Belongs to the event loop; one task takes."""

    def __init__(
        self, *, on_too_slow: Callable[[], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Without ``on_too_slow`` there is no limit: for who takes at once and sends nothing on."""
        self._on_too_slow = on_too_slow
        self._clock = clock
        self._heard: deque[State | Frame] = deque()
        self._num_bytes = 0
        self._over_since: float | None = None
        self._error: ApiError | None = None
        self._bell = Bell()

    def on_state(self, state: State) -> None:
        """Take the state: only its text matters, when the log was lost."""
        self._put([state])

    def on_queued(self, queued: Queued) -> None:
        """Leave out news of the wait: these dialects have no word for it but a ping."""

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """Take the next frames."""
        self._put(frames)

    def fail(self, error: ApiError) -> None:
        """Let `take` raise ``error`` from now on, instead of all that waits and would come."""
        self._error = error
        self._heard.clear()
        self._bell.ring()

    async def take(self) -> State | Frame:
        """Return what was heard next. Raises the error of `fail`."""
        while not self._heard:
            if self._error is not None:
                raise self._error
            await self._bell.wait()
        heard = self._heard.popleft()
        self._num_bytes -= _size(heard)
        if self._num_bytes <= LIMIT_BYTES:
            self._over_since = None
        return heard

    def _put(self, heard: Sequence[State | Frame]) -> None:
        if self._error is not None:
            return
        was_behind = bool(self._heard)
        self._heard.extend(heard)
        self._num_bytes += sum(map(_size, heard))
        self._bell.ring()
        if self._on_too_slow is not None and self._num_bytes > LIMIT_BYTES:
            self._check(self._on_too_slow, was_behind)

    def _check(self, on_too_slow: Callable[[], None], was_behind: bool) -> None:
        now = self._clock()
        if self._over_since is None:
            self._over_since = now
        # A whole log comes at once, and may be of any size.
        if now - self._over_since > GRACE_S or (was_behind and self._num_bytes > MOST_BYTES):
            message = "This stream was read too slowly. Come again, with the Last-Event-ID where there are ids."
            self.fail(ApiError(message, status=408, code="too_slow"))
            on_too_slow()


def _size(heard: State | Frame) -> int:
    logprobs = () if isinstance(heard, State) else heard.logprobs
    return _ENTRY_BYTES + len(heard.text or "") + sum(_LOGPROB_BYTES * (1 + len(each.top)) for each in logprobs)
