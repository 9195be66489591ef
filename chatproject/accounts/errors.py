"""Refusals: nothing was stored, nothing charged, and the text says what to do. One cannot know it: `is_unknown`."""

from __future__ import annotations

from chatproject.contract.errors import REFUSAL_TEXT, Refusal


class Refused(Exception):
    """A request was not accepted; or with ``is_unknown``, it may have been: sent again under its id, it counts once."""

    def __init__(
        self, code: Refusal, message: str = "", *, retry_after_s: float | None = None, is_unknown: bool = False
    ) -> None:
        self.code = code
        self.message = message or REFUSAL_TEXT[code]
        self.retry_after_s = retry_after_s
        self.is_unknown = is_unknown
        super().__init__(f"{code}: {self.message}")
