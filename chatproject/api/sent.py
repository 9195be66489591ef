"""What a stream of `/v1` has sent of an answer: its pieces are only ever added, so nothing of it can be taken back."""

from __future__ import annotations

from chatproject.api.errors import ApiError


class Replaced(ApiError):
    """The client holds another text than the answer that is stored."""

    def __init__(self) -> None:
        message = "The answer was written anew, and is not what was sent here. Ask for it again."
        super().__init__(message, status=500, type="server_error", code="replaced")


class Sent:
    """The text that the client holds."""

    def __init__(self) -> None:
        self._text = ""

    def take(self, text: str, *, at: int) -> str:
        """Return what the client does not hold yet of ``text``, which begins after ``at`` characters of the answer.

        Raises Replaced when it holds something else there.
        """
        held = self._text[at : at + len(text)]
        if at > len(self._text) or not text.startswith(held):
            raise Replaced()
        fresh = text[len(held) :]
        self._text += fresh
        return fresh

    def close(self, answer: str) -> None:
        """Take the end of ``answer``. Raises Replaced when the client holds more or less than that."""
        if self._text != answer:
            raise Replaced()
