"""A worker played by the test: it writes the log of a generation and loses it, as a Redis without a disk would."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

import redis

from chatproject.contract import names
from chatproject.contract.errors import FinishReason
from chatproject.contract.frames import End, Frame, answer_sha256
from tests.integration.stack import Stack


@dataclass
class ToldWorker:
    """Tells one generation. The hub reads what it wrote within a second or two."""

    server: redis.Redis
    stack: Stack
    generation_id: str
    text: str = ""
    _run: int = 0
    _seq: int = field(default=0, repr=False)

    def begin(self) -> None:
        """Claim the generation; what an earlier run wrote is lost."""
        self.server.delete(self._key)
        self._run, self._seq, self.text = self._run + 1, 0, ""
        self.server.xadd(self._key, {"k": "start"}, id=f"{self._run}-0")
        self._add("started")

    def tell(self, *pieces: str) -> None:
        """Write a delta for each piece."""
        for piece in pieces:
            self._add("delta", text=piece)
            self.text += piece

    def end(self) -> None:
        """End the answer, and store it."""
        end = End(status="done", reason=FinishReason.STOP, sha256=answer_sha256(self.text))
        self.stack.sql(
            "UPDATE generations_generation SET status='done', reason='stop', answer=?, sha256=?, end_seq=? WHERE id=?",
            self.text, end.sha256, self._seq + 1, uuid.UUID(self.generation_id).hex,
        )  # fmt: skip
        self._add("end", end=end)
        self.server.xadd(self._key, {"k": "stored"}, id=f"{self._run}-{self._seq + 1}")

    @property
    def _key(self) -> str:
        return names.log_key(self.generation_id)

    def _add(self, kind: str, *, text: str = "", end: End | None = None) -> None:
        self._seq += 1
        frame = Frame(self.generation_id, self._run, self._seq, kind, len(self.text), text, end=end)  # type: ignore[arg-type]
        self.server.xadd(self._key, frame.entry(), id=f"{self._run}-{self._seq}")  # type: ignore[arg-type]


def newest_generation(stack: Stack, *, origin: str, timeout_s: float = 20) -> str:
    """Wait for a generation that was accepted and nobody has told; return its id."""
    deadline = time.monotonic() + timeout_s
    live = "SELECT id FROM generations_generation WHERE status = 'accepted' AND origin = ?"
    while not (found := stack.sql(live, origin)):
        assert time.monotonic() < deadline, "nothing was accepted"
        time.sleep(0.05)
    return str(uuid.UUID(found[0][0]))
