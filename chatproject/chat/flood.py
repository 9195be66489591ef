"""How many frames one socket may send: a token bucket, and when asking too often becomes a flood."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

BURST_FRAMES: Final = 30
FRAMES_PER_S: Final = 10
MOST_REFUSED: Final = 30  # in a row; then it is no mistake any more


class FloodGuard:
    """Counts the frames of one socket."""

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
        """Count one frame; return 0.0, or the seconds to wait before the next when this one is too many."""
        now = self._clock()
        self._tokens = min(BURST_FRAMES, self._tokens + (now - self._filled_at) * FRAMES_PER_S)
        self._filled_at = now
        if self._tokens < 1:
            self._refused += 1
            return max(0.01, round((1 - self._tokens) / FRAMES_PER_S, 2))
        self._tokens -= 1
        self._refused = 0
        return 0.0
