"""Find stop strings in a text that comes in pieces, in time linear in the text.

The answer ends before the stop string that is complete first (of those complete at the same character, the longest), so
the result does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Iterable


class StopFinder:
    """Holds back what may become a stop string. Source: Knuth, Morris and Pratt 1977."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [(stop, _fallbacks(stop)) for stop in dict.fromkeys(stops) if stop]
        self._states = [0] * len(self._stops)  # characters of each stop that the text now ends with
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """Take more text and return what is certain now. After a stop string nothing comes any more."""
        if self.is_stopped:
            return ""
        if not self._stops:
            return text
        whole = self._held + text
        for at, character in enumerate(text, start=len(self._held) + 1):
            complete = self._advance(character)
            if complete:
                self.is_stopped = True
                self._held = ""
                return whole[: at - complete]
        certain = len(whole) - max(self._states)
        self._held = whole[certain:]
        return whole[:certain]

    def flush(self) -> str:
        """Return what was held back: the text is over."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> int:
        """Take one character; return the length of the stop string it completes, or 0."""
        complete = 0
        for index, (stop, fallbacks) in enumerate(self._stops):
            state = self._states[index]
            while state and stop[state] != character:
                state = fallbacks[state - 1]
            if stop[state] == character:
                state += 1
            if state == len(stop):
                complete = max(complete, state)
                state = fallbacks[state - 1]
            self._states[index] = state
        return complete


def _fallbacks(stop: str) -> list[int]:
    """Return per prefix of ``stop`` the length of the longest shorter prefix that it ends with."""
    fallbacks = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = fallbacks[length - 1]
        if stop[index] == stop[length]:
            length += 1
        fallbacks[index] = length
    return fallbacks
