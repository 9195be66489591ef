"""One generation that this worker runs: from a claim to frames, and what must be remembered until it is stored.

Turns the engine's outputs into numbered frames and log entries, and keeps the whole log in memory, so that a Redis that
lost it gets it back. Pure: no socket, no Redis, no Celery. Owned by the publisher's thread once it is running.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from chatproject.contract import frames as wire
from chatproject.contract.errors import FAILURE_TEXT, Failure, FinishReason
from chatproject.contract.frames import End, Frame, TokenLogprob
from chatproject.contract.messages import Usage
from workers.engine.interfaces import Finish, StepOutput
from workers.store import Claim, Entry

ALONE_S: Final = 0.003  # after which `started` is told without a token
CANCELLED: Final = End(status="cancelled", reason=FinishReason.CANCELLED)


class ActiveGeneration:
    """What the worker knows of one generation it has claimed."""

    def __init__(self, claim: Claim, *, queue_ms: int, claimed_at: float) -> None:
        self.claim = claim
        self.id = claim.request.generation_id
        self.run = claim.lease.run
        self.sequence_id = f"{self.id}/{self.run}"  # in the engine
        self.channels = dict.fromkeys(claim.channels)
        self.claimed_at = claimed_at
        self.entries: list[Entry] = list(claim.entries)  # the whole log as it must be
        self.num_logged = len(claim.entries)  # of ``entries``: what Redis has taken
        self.logged_at = 0.0  # when Redis last took some, monotonic
        self.unsent: list[Frame] = []  # logged or not; leave this list when shown
        self.dropped_turns = 0
        self.end: End | None = None
        # When its next frame may be shown. A first token that comes at once need not wait for `started` to be written.
        self.due_at = claimed_at + ALONE_S
        self.ask_to_store_at = 0.0
        self.num_asked = 0  # times that it was asked to be stored
        self._queue_ms = queue_ms
        self._seq = claim.prefix.seq
        self._characters = len(claim.prefix.text)
        self._text: list[str] = [claim.prefix.text]
        self._pending_text: list[str] = []
        self._pending_tokens: list[int] = []
        self._pending_logprobs: list[TokenLogprob] = []
        if self._seq == 0:
            self._frame(Frame(generation_id=self.id, run=self.run, seq=1, kind="started"))

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far, those of earlier runs included."""
        logged = sum(entry[1].get("n", "").count(",") + 1 for entry in self.entries if entry[1].get("n"))
        return logged + len(self._pending_tokens)

    @property
    def last_logged_id(self) -> str:
        """The id of the last entry that Redis has taken."""
        return self.entries[self.num_logged - 1][0] if self.num_logged else ""

    @property
    def has_news(self) -> bool:
        """Whether something waits for the log."""
        return bool(self._pending_text) or self.num_logged < len(self.entries)

    def take(self, output: StepOutput) -> None:
        """Take what one step gave; `cut` makes a frame of it. Nothing comes after an end."""
        if self.end is not None:
            return
        self._pending_tokens += output.tokens
        if output.logprobs:
            self._pending_logprobs += output.logprobs
        if output.text:
            if self._characters == len(self.claim.prefix.text) and not self._pending_text:
                self.due_at = 0.0
            self._pending_text.append(output.text)
        if output.finish is not None:
            self.cut()
            self._end(_end_of(output.finish, queue_ms=self._queue_ms, dropped_turns=self.dropped_turns))

    def cut(self) -> None:
        """Make one frame of the text that came since the last."""
        text = "".join(self._pending_text)
        if not text:
            return  # tokens whose text is still held back go with the next text
        frame = Frame(
            self.id, self.run, self._seq + 1, "delta", self._characters, text, tuple(self._pending_tokens),
            logprobs=tuple(self._pending_logprobs),
        )  # fmt: skip
        self._pending_text, self._pending_tokens, self._pending_logprobs = [], [], []
        self._characters += len(text)
        self._text.append(text)
        self._frame(frame)

    def fail(self, failure: Failure, message: str = "") -> None:
        """End as failed, here and now; nothing happens when it has ended."""
        if self.end is None:
            self.cut()
            self._end(End(status="failed", code=failure, message=message or FAILURE_TEXT[failure], usage=self._usage()))

    def cancel(self) -> None:
        """End as cancelled without the engine (it never got there)."""
        if self.end is None:
            self.cut()
            self._end(replace(CANCELLED, usage=self._usage()))

    def rewind(self, last_id: str) -> bool:
        """Take ``last_id`` as the last entry that Redis still has; False when this log has no such entry."""
        for index, (id_, _) in enumerate(self.entries):
            if id_ == last_id:
                self.num_logged = index + 1
                return True
        return False

    def restart_log(self) -> None:
        """Number the whole log as this run's, for a Redis that lost it; sequence numbers stay."""
        rewritten: list[Entry] = [(f"{self.run}-0", {"k": "start"})]
        for id_, fields in self.entries:
            _, seq = wire.parse_entry_id(id_)
            if fields.get("k") != "start":
                rewritten.append((f"{self.run}-{seq}", fields))
        self.entries, self.num_logged = rewritten, 0

    def shown(self) -> Sequence[Frame]:
        """Return the logged frames to send now, and forget them. The end is never among them: records shows it."""
        ready, self.unsent = self.unsent, []
        return ready

    def _usage(self) -> Usage:
        return Usage(completion_tokens=self.num_tokens, queue_ms=self._queue_ms, dropped_turns=self.dropped_turns)

    def _end(self, end: End) -> None:
        if self._pending_tokens:  # held back by a stop string that has come true: charged, never shown
            self._pending_tokens, self._pending_logprobs = [], []
        self.end = replace(end, sha256=wire.answer_sha256("".join(self._text)))
        self._frame(
            Frame(generation_id=self.id, run=self.run, seq=self._seq + 1, kind="end", at=self._characters, end=self.end)
        )

    def _frame(self, frame: Frame) -> None:
        self._seq = frame.seq
        self.entries.append((f"{self.run}-{frame.seq}", frame.entry()))
        if frame.kind != "end":
            self.unsent.append(frame)


def _end_of(finish: Finish, *, queue_ms: int, dropped_turns: int) -> End:
    usage = Usage(
        prompt_tokens=finish.prompt_tokens, completion_tokens=finish.completion_tokens,
        cached_tokens=finish.cached_tokens, dropped_turns=dropped_turns, engine_s=round(finish.engine_s, 6),
        queue_ms=queue_ms, prefill_ms=round(finish.prefill_s * 1000), decode_ms=round(finish.decode_s * 1000),
        tokens_per_s=round(finish.decode_tokens / finish.decode_s, 2) if finish.decode_s > 0 else 0.0,
        mean_rows=round(finish.mean_rows, 2), kv_blocks=finish.kv_blocks,
    )  # fmt: skip
    if finish.reason == "failed":
        failure = finish.failure or Failure.ENGINE_ERROR
        return End(status="failed", code=failure, message=finish.message or FAILURE_TEXT[failure], usage=usage)
    if finish.reason == "cancelled":
        return replace(CANCELLED, usage=usage)
    return End(status="done", reason=FinishReason(finish.reason), usage=usage)
