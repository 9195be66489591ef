"""How much one socket may send: a token bucket, when asking too often becomes a flood, and how much may lie waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from chatproject.chat.errors import Refusal, Refused

BURST_FRAMES: Final = 30
FRAMES_PER_S: Final = 10
MOST_REFUSED: Final = 30  # in a row; then it is no mistake any more
MOST_WAITING: Final = 60  # frames; as many come within 3 s
MOST_WAITING_CHARACTERS: Final = 256 * 1024


class FloodGuard:
    """Counts the frames and pings of one socket."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = float(BURST_FRAMES)
        self._filled_at = clock()
        self._refused = 0

    @property
    def is_flood(self) -> bool:
        """Whether the socket went on and on although it was told to wait."""
        return self._refused > MOST_REFUSED

    def take(self) -> float:
        """Count one; return 0.0, or the seconds to wait before the next when this one is too many."""
        now = self._clock()
        self._tokens = min(BURST_FRAMES, self._tokens + (now - self._filled_at) * FRAMES_PER_S)
        self._filled_at = now
        if self._tokens < 1:
            self._refused += 1
            return max(0.01, round((1 - self._tokens) / FRAMES_PER_S, 2))
        self._tokens -= 1
        self._refused = 0
        return 0.0


class Waiting:
    """The frames of one socket behind the one that is worked on: however long that takes, no more than so much."""

    __slots__ = ("_num_characters", "_texts")

    def __init__(self) -> None:
        self._texts: list[str | None] = []
        self._num_characters = 0

    def __bool__(self) -> bool:
        """Whether any frame waits."""
        return bool(self._texts)

    def put(self, text: str | None) -> None:
        """Add a frame. Raises Refused when it is one too many, or holds too much."""
        num_characters = self._num_characters + len(text or "")
        if len(self._texts) >= MOST_WAITING or num_characters > MOST_WAITING_CHARACTERS:
            raise Refused(
                Refusal.RATE_LIMITED, "What you sent before is still being taken. Wait a moment.", retry_after_s=1
            )
        self._texts.append(text)
        self._num_characters = num_characters

    def take(self) -> str | None:
        """Return the frame that waits longest. Raises IndexError when none does."""
        text = self._texts.pop(0)
        self._num_characters -= len(text or "")
        return text

    def clear(self) -> None:
        """Forget them all."""
        self._texts.clear()
        self._num_characters = 0
