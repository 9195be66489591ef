"""One generation that somebody in this process reads: who does, how far, and when it was last heard of."""

from __future__ import annotations

from chatproject.contract.frames import Log
from chatproject.generations.streaming.cursor import Cursor
from chatproject.generations.streaming.queue_news import QueueNews
from chatproject.generations.streaming.reader import Reader, ReadStatus, State


class Stream:
    """Owned by the event loop of its hub."""

    __slots__ = (
        "heard_at", "id", "is_reading", "log_seq", "looked_at", "news", "num_resuming", "readers", "rows_at",
        "thread", "wants_log", "was_accepted",
    )  # fmt: skip

    def __init__(self, generation_id: str, now: float) -> None:
        self.id = generation_id
        self.readers: dict[Reader, Cursor] = {}
        self.num_resuming = 0  # readers that are about to be among these
        self.heard_at = now  # a frame, or a log read
        self.looked_at = 0.0
        self.rows_at = 0.0
        self.log_seq = 0  # of the last frame when the log was last read
        self.is_reading = False
        self.wants_log = False
        self.was_accepted = False  # its row or its log was seen
        self.thread: str | None = None
        self.news = QueueNews(generation_id)

    @property
    def is_started(self) -> bool:
        """Whether any reader has seen a frame."""
        return any(cursor.seq for cursor in self.readers.values())

    def state(self, log: Log, *, status: ReadStatus, text: str | None = None, seq: int | None = None) -> State:
        """Return what a reader is told of it; without ``seq``, the log's last frame before the end is the last."""
        if seq is None:
            seq = log.seq - 1 if log.end is not None else log.seq
        return State(generation_id=self.id, thread=self.thread, status=status, seq=seq, text=text)
