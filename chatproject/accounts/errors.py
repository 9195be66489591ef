"""Refusals: nothing was stored, nothing charged, and the text says what to do."""

from __future__ import annotations

from chatproject.contract.errors import REFUSAL_TEXT, Refusal


class Refused(Exception):
    """A request was not accepted."""

    def __init__(self, code: Refusal, message: str = "", *, retry_after_s: float | None = None) -> None:
        self.code = code
        self.message = message or REFUSAL_TEXT[code]
        self.retry_after_s = retry_after_s
        super().__init__(f"{code}: {self.message}")
