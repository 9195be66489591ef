"""What one reader saw of one chat, checked frame by frame against what the socket promises."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

Wire = dict[str, Any]


class OtherStory(EOFError):
    """After a resume the first piece does not fit: Redis lost the log and the worker died. Read it from 0."""


@dataclass
class View:
    """One reader's text of one generation. A socket may come and go; the view stays."""

    seq: int = 0
    text: str = ""
    end: Wire | None = None
    deltas_at: list[float] = field(default_factory=list)
    started_at: float | None = None
    ended_at: float | None = None
    replacements: int = 0
    problems: list[str] = field(default_factory=list)
    has_resumed: bool = False  # and no delta came since

    def on_state(self, state: Wire) -> None:
        """Take the first answer to a resume, or a text that replaces ours."""
        if "text" not in state or state["text"] is None:
            return
        if not state["text"].startswith(self.text):
            self.replacements += 1
        self.text, self.seq = state["text"], state["seq"]

    def on_bad_cursor(self) -> None:
        """The log is behind what was shown, or cut otherwise: read it from its start."""
        self.seq = 0
        self._shown, self.text = self.text, ""

    def on_frame(self, frame: Wire, at: float) -> None:
        """Take started, delta, finished or failed."""
        kind = frame["type"]
        if self.end is not None:
            self.problems.append(f"doubled: {kind} after the end")
            return
        if frame["seq"] != self.seq + 1:
            word = "doubled" if frame["seq"] <= self.seq else "gap"
            self.problems.append(f"{word}: seq {frame['seq']} after {self.seq}")
        self.seq = frame["seq"]
        if kind == "started":
            self.started_at = self.started_at or at
        elif kind == "delta":
            if frame["at"] != len(self.text) and self.has_resumed:
                raise OtherStory
            self.has_resumed = False
            if frame["at"] != len(self.text):
                self.problems.append(f"reordered: at {frame['at']} after {len(self.text)} characters")
            self.text += frame["text"]
            self.started_at = self.started_at or at
            self.deltas_at.append(at)
            if self._shown and len(self.text) >= len(self._shown):
                self.replacements += not self.text.startswith(self._shown)
                self._shown = ""
        else:
            self.end, self.ended_at = frame, at
            if kind == "finished" and frame["sha256"] != hashlib.sha256(self.text.encode()).hexdigest():
                self.problems.append("the checksum of `finished` is not that of the text shown")

    _shown: str = ""  # before a bad cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """An open socket heard nothing from here to there; seconds of the run."""

    began: float
    ended: float
    url: str = ""  # of the web process


@dataclass
class Chat:
    """One message of one user."""

    number: int
    client_id: str
    user: str
    text: str
    max_tokens: int
    wishes: dict[str, Any] = field(default_factory=dict)  # of sampling, beside these
    accepted: list[Wire] = field(default_factory=list)
    accepted_at: float | None = None
    asked_at: float = 0.0
    is_stopped: bool = False
    refusals: list[str] = field(default_factory=list)
    view: View = field(default_factory=View)
    second: View | None = None  # another tab, at another web process
    sockets: int = 0
    silences: list[Silence] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    way: str = "socket"  # or one of asking.WAYS
    after: Chat | None = None  # the message before it in the same conversation
    kind: str = "new"  # what it is to that one: a follow_up, a regenerate or an edit
    is_twin: bool = False  # another goes into the same conversation in the same moment
    gives_up: bool = False  # at the first refusal, although another try might help
    num_sent: int = 0
    notices: set[str] = field(default_factory=set)  # the generations that its sockets were told news of
    refused: str = ""  # the code that was the last word

    @property
    def generation(self) -> str | None:
        """The id, once accepted."""
        return self.accepted[0]["generation"] if self.accepted else None

    @property
    def views(self) -> list[View]:
        """All that somebody read."""
        return [self.view] + ([self.second] if self.second is not None else [])
