"""Say how large a step may be: half as large when memory ran out, and back to full size by and by.

Knows numbers only.
"""

from __future__ import annotations

from typing import Final

_GOOD_STEPS: Final = 64  # that must succeed before a larger size is tried again


class StepSize:
    """Rows and tokens of a step at most. Engine thread only."""

    def __init__(self, *, max_rows: int, step_tokens: int, least_tokens: int) -> None:
        """``least_tokens`` are those of the smallest step that makes sense."""
        self._full = (max_rows, step_tokens)
        self._least_tokens = least_tokens
        self.rows, self.tokens = self._full
        self._num_good = 0

    def shrink(self, num_rows: int, num_tokens: int) -> bool:
        """Halve what did not fit. False, changing nothing, when it was as small as can be."""
        if num_rows <= 1 and num_tokens <= self._least_tokens:
            return False
        self.rows = max(num_rows // 2, 1)
        if num_tokens > num_rows:  # with prefill
            self.tokens = min(max(num_tokens // 2, self._least_tokens), self._full[1])
        self._num_good = 0
        return True

    def succeed(self) -> bool:
        """Take note of a step that fitted. True when the size has grown by it."""
        if (self.rows, self.tokens) == self._full:
            return False
        self._num_good += 1
        if self._num_good < _GOOD_STEPS:
            return False
        self._num_good = 0
        self.rows, self.tokens = min(self.rows * 2, self._full[0]), min(self.tokens * 2, self._full[1])
        return True
