"""What a reader of a generation is told: one state, then queue news, then every frame once, in order.

Implemented by the chat socket, SSE and the waiting API; fed by the hub, in the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from chatproject.contract.frames import Frame

ReadStatus = Literal["waiting", "running", "done", "failed", "cancelled", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The first word to a reader that resumes: where the generation is."""

    generation_id: str
    thread: str | None  # the conversation
    status: ReadStatus
    seq: int  # of the last frame that exists; the reader gets those after its own cursor
    text: str | None = None  # whole text so far, when the log is gone: the reader replaces its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """News of a wait, within 1 s when not started, then on change, at most once a second."""

    generation_id: str
    position: int  # 1 = next
    eta_s: float | None
    reason: Literal["no_worker", "loading"] | None = None


class Reader(Protocol):
    """Hears of one or many generations. Methods return at once and never raise."""

    def on_state(self, state: State) -> None:
        """Take the state; only readers that resumed get one."""

    def on_queued(self, queued: Queued) -> None:
        """Take news of the wait."""

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """Take the next frames of one generation: no gap, no repeat; the last one of all has kind ``end``."""
