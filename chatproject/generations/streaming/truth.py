"""What is true of a generation, whatever the channel layer told: its log while it lives, its row afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from chatproject.batched import Batched
from chatproject.contract import frames as wire
from chatproject.contract import names
from chatproject.contract.errors import FinishReason
from chatproject.contract.frames import Frame, Log
from chatproject.generations import records
from chatproject.generations.models import Generation
from chatproject.generations.streaming.rows import Rows
from chatproject.generations.streaming.stream import Stream
from chatproject.redis_client import AsyncClient

DATABASE_LOOK_S: Final = 3.0
LOGS_AT_ONCE: Final = 16


class Truth:
    """Reads logs and rows, those of many who ask at one moment together. Owned by one event loop."""

    def __init__(self, client: AsyncClient) -> None:
        self._redis = client
        # A few at once: an answer of hundreds of logs would hold up the frames of everybody.
        self._logs: Batched[str, Any] = Batched(self._read_logs, at_once=LOGS_AT_ONCE)
        self._rows = Rows()

    async def row(self, generation_id: str) -> Generation | None:
        """Return the row, without its request. Raises django.db.Error."""
        return await self._rows.get(generation_id)

    async def log(self, generation_id: str) -> Log:
        """Return the folded log; empty when there is none. Raises what a Redis that is away does, and ContractError."""
        return wire.fold(generation_id, await self._logs.get(generation_id) or [])

    async def of(self, stream: Stream) -> tuple[Log | None, bool]:
        """Return the log, from the row when it is gone, and whether it holds the stored end.

        None when there was a row and is none any more: its conversation was deleted. Raises as `log` and `row`.
        """
        folded = await self.log(stream.id)
        if folded.is_stored and folded.end is not None:
            return folded, True
        now = time.monotonic()
        stream.was_accepted |= folded.run > 0
        stands_still, stream.log_seq = folded.seq == stream.log_seq, folded.seq
        if folded.frames and folded.end is None and not stands_still:
            return folded, False
        # One that stands still may have ended: Redis began again from before its end was written.
        if now - stream.rows_at < DATABASE_LOOK_S:
            return folded, False
        stream.rows_at = now
        row = await self.row(stream.id)
        if row is None:
            # Attached before its accept has committed, or deleted since.
            return (None, True) if stream.was_accepted else (folded, False)
        stream.was_accepted = True
        if row.is_terminal:
            return log_of_row(row), True
        return folded, False

    async def _read_logs(self, ids: Sequence[str]) -> dict[str, Any]:
        pipe = self._redis.pipeline(transaction=False)
        for id_ in ids:
            pipe.xrange(names.log_key(id_))
        return dict(zip(ids, await pipe.execute(), strict=True))


def log_of_row(row: Generation) -> Log:
    """Return what the log of a stored generation amounts to, from its row: one delta and the end."""
    id_, end = str(row.id), records.end_of_row(row)
    seq = max(row.end_seq, 3 if row.answer else 2)
    parts: Iterable[Frame | None] = (
        Frame(generation_id=id_, run=0, seq=seq - 1, kind="delta", text=row.answer),
        Frame(generation_id=id_, run=0, seq=seq, kind="end", at=len(row.answer), end=end),
    )
    return Log(
        run=0, seq=seq, text=row.answer, frames=tuple(part for part in parts if part), end=end, end_seq=seq,
        is_stored=True,
    )  # fmt: skip


def end_of_the_deleted(generation_id: str, *, seq: int) -> Frame:
    """Return the end that a reader is told when there is no row any more."""
    end = wire.End(status="cancelled", reason=FinishReason.CANCELLED)
    return Frame(generation_id=generation_id, run=0, seq=seq, kind="end", end=end)
