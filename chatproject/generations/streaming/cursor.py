"""Where one reader is in one generation, and which of the next frames it may see.

Pure: no socket, no Redis, no clock. Two sources feed it: live frames (may be late, doubled, lost) and the folded log
(the truth). What it lets through has no gap and no repeat.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from chatproject.contract.frames import Frame, Log

_UNKNOWN: Final = -1  # characters; agrees with no log


class Verdict(enum.Enum):
    """What to do with a live frame."""

    SHOW = "show"
    IGNORE = "ignore"  # seen before, or of a run that lost its generation
    ASK_LOG = "ask_log"  # a gap, or something that does not fit: the log decides


@dataclass(slots=True)
class Cursor:
    """The last frame a reader has; owned by the event loop's thread."""

    run: int = 0
    seq: int = 0
    characters: int = 0
    is_ended: bool = False

    @classmethod
    def without_log(cls, after: int) -> Cursor:
        """Return the cursor of a reader that has ``after`` frames of which nothing can be read now.

        Whether they are those of the log is not known, so the first log that is read replaces its text.
        """
        return cls(seq=after, characters=_UNKNOWN if after else 0)

    def offer(self, frame: Frame) -> Verdict:
        """Judge a live frame, and move past it when it may be shown."""
        if self.is_ended or frame.run < self.run:
            return Verdict.IGNORE
        if self.characters == _UNKNOWN:
            return Verdict.ASK_LOG
        if frame.seq <= self.seq:
            # A newer run never writes what an older one has shown, unless Redis lost the log: then the log decides.
            return Verdict.ASK_LOG if frame.run > self.run and frame.kind != "end" else Verdict.IGNORE
        if frame.seq != self.seq + 1 or (frame.kind == "delta" and frame.at != self.characters):
            return Verdict.ASK_LOG
        self._pass(frame)
        return Verdict.SHOW

    def catch_up(self, log: Log, *, with_end: bool) -> Sequence[Frame] | None:
        """Return the frames of the log behind the cursor and move past them.

        None when the log tells another story than the reader was shown: it must replace its text (see `restart`).
        ``with_end`` is False while the end is not stored yet: storing comes before showing it.
        """
        if self.is_ended:
            return []
        if not self._agrees(log):
            return None
        fresh = [frame for frame in log.frames if frame.seq > self.seq and (with_end or frame.kind != "end")]
        if fresh and fresh[0].seq != self.seq + 1:
            return None  # A stored answer stands for its log: one delta, under the number of the last.
        for frame in fresh:
            self._pass(frame)
        self.run = max(self.run, log.run)
        return fresh

    def restart(self, log: Log) -> None:
        """Stand behind the last delta of ``log``, whose text the reader has just been given whole."""
        deltas = [frame for frame in log.frames if frame.kind != "end"]
        self.run, self.seq, self.characters = log.run, deltas[-1].seq if deltas else 0, len(log.text)

    def _agrees(self, log: Log) -> bool:
        if self.seq > log.seq:
            # The log is behind what was shown. It is written again from its worker's memory, unless that worker died.
            return log.run <= self.run
        characters = sum(len(frame.text) for frame in log.frames if frame.seq <= self.seq)
        return characters == self.characters

    def _pass(self, frame: Frame) -> None:
        self.run, self.seq = max(self.run, frame.run), frame.seq
        self.characters += len(frame.text)
        self.is_ended = frame.kind == "end"
