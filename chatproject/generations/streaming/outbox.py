"""What one reader was not yet sent: a bounded queue of serialised frames, in order. Knows no socket and no JSON.

The frames of a generation can be held back until its acceptance was told. Over the limit for longer than the grace
(or far over it at once) the reader is too slow; it is cut off, and resumes from where it was.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from chatproject.bell import Bell

LIMIT_BYTES: Final = 192 * 1024  # with what the transport holds (see chat.transport), 256 KiB are not acknowledged
# A resume puts a whole answer here at once: a reader that takes it within the grace is not slow.
GRACE_S: Final = 5.0
MOST_BYTES: Final = 8 * 1024 * 1024


class Outbox:
    """Belongs to the event loop's thread. ``put`` returns at once; ``take`` waits for something to send.

    A frame that nothing is before is written at once, without a turn of the task that takes.
    """

    def __init__(
        self,
        *,
        on_too_slow: Callable[[], None],
        send_now: Callable[[str], bool] = lambda text: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``send_now`` writes a frame at once and says so, or returns False; then the frame waits here."""
        self._send_now = send_now
        self.num_bytes = 0  # all that waits, held or not
        self._on_too_slow = on_too_slow
        self._clock = clock
        self._texts: deque[str] | tuple[()] = ()  # a deque only while it holds something: nearly all sockets are idle
        self._held: dict[str, list[str]] = {}
        self._over_since: float | None = None
        self._bell = Bell()
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether more waits than a reader that keeps up ever has."""
        return self.num_bytes > LIMIT_BYTES

    def put(self, text: str, *, generation_id: str = "") -> None:
        """Queue a frame, behind its generation's acceptance if that is held."""
        if self._is_closed:
            return
        held = self._held.get(generation_id) if self._held else None
        if held is None:
            if not self._texts and self._send_now(text):
                return
            if isinstance(self._texts, tuple):
                self._texts = deque()
            self._texts.append(text)
            self._bell.ring()
        else:
            held.append(text)
        self.num_bytes += _size(text)
        if self.num_bytes > LIMIT_BYTES:
            self._check()

    def hold(self, generation_id: str) -> None:
        """Keep the frames of a generation back until `release` or `drop`."""
        self._held[generation_id] = []

    def release(self, generation_id: str, first: str) -> None:
        """Queue ``first``, then what was held back."""
        held = self._held.pop(generation_id, [])
        self.num_bytes -= sum(map(_size, held))
        for text in (first, *held):
            self.put(text)

    def drop(self, generation_id: str) -> None:
        """Forget what was held back: the generation is not this reader's."""
        self.num_bytes -= sum(map(_size, self._held.pop(generation_id, [])))

    async def take(self) -> str | None:
        """Return the next frame to send, when there is one; None when the outbox was closed and is empty."""
        while isinstance(self._texts, tuple):
            if self._is_closed:
                return None
            await self._bell.wait()
        text = self._texts.popleft()
        if not self._texts:
            self._texts = ()
        self.num_bytes -= _size(text)
        if self.num_bytes <= LIMIT_BYTES:
            self._over_since = None
        return text

    def close(self, *, forget: bool = False) -> None:
        """Take nothing more; what is queued can still be sent unless ``forget``."""
        self._is_closed = True
        self._held.clear()
        if forget:
            self._texts = ()
        self.num_bytes = sum(map(_size, self._texts))
        self._bell.ring()

    def _check(self) -> None:
        now = self._clock()
        if self._over_since is None:
            self._over_since = now
        if now - self._over_since > GRACE_S or self.num_bytes > MOST_BYTES:
            self.close(forget=True)
            self._on_too_slow()


def _size(text: str) -> int:
    # `isascii` is a flag of the string: most frames are not encoded to be counted.
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
