"""Copy the end of a generation from its log to its row: answer, usage and ledger in one transaction, once.

The first `end` in the log decides, whoever wrote it. A row that is terminal already wins. Knows no Celery.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

from django.db import transaction

from chatproject import metrics, service_clock, statements
from chatproject.accounts import quotas
from chatproject.contract import frames
from chatproject.contract.errors import Failure, FinishReason
from chatproject.contract.frames import End, Log
from chatproject.contract.messages import Usage
from chatproject.generations import scripts, selectors
from chatproject.generations.models import Generation, Status

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is now in the row, and who wants to hear of it."""

    generation: Generation
    end: End
    run: int
    channels: list[str]
    is_new: bool  # this call stored it


def store(generation_id: str) -> Stored | None:
    """Store the end that the log holds. None when there is no end, or no such row.

    Raises redis.RedisError and django.db.Error: nothing is half done then, and the call may be repeated.
    """
    folded = selectors.log_of(generation_id)
    row = statements.get(Generation, id=generation_id)
    if row is None:
        forget(generation_id)
        return None
    if row.is_terminal:
        return _say_stored(row, folded.run, is_new=False)
    if folded.end is None:
        return None
    is_new = _write(row, folded)
    if not is_new:  # another delivery got here first, and may have seen another end
        row.refresh_from_db()
    return _say_stored(row, folded.run, is_new=is_new)


def end_of_row(row: Generation) -> End:
    """Return the end as stored."""
    if not row.is_terminal:
        raise ValueError(f"generation {row.id} has not ended")
    status: Literal["done", "cancelled", "failed", "expired"] = row.status  # type: ignore[assignment]
    return End(
        status=status,
        reason=FinishReason(row.reason) if row.reason else None,
        code=Failure(row.code) if row.code else None,
        message=row.message,
        sha256=row.sha256,
        usage=Usage(
            prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens, cached_tokens=row.cached_tokens,
            dropped_turns=row.dropped_turns, engine_s=row.engine_s, queue_ms=row.queue_ms, prefill_ms=row.prefill_ms,
            decode_ms=row.decode_ms, tokens_per_s=row.tokens_per_s or 0.0, mean_rows=row.mean_rows or 0.0,
            kv_blocks=row.kv_blocks or 0,
        ),
    )  # fmt: skip


def forget(generation_id: str) -> None:
    """Drop what Redis holds of a generation whose row is gone."""
    scripts.forget(generation_id)


def _write(row: Generation, folded: Log) -> bool:
    end = folded.end
    assert end is not None
    usage = end.usage
    if not usage.completion_tokens and folded.tokens:
        usage = replace(usage, completion_tokens=len(folded.tokens))  # ended by others than its worker
    ended: dict[str, Any] = {
        "status": end.status, "ended_at": service_clock.now(), "answer": folded.text, "reason": end.reason or "",
        "code": end.code or "", "message": end.message[:500], "end_seq": folded.end_seq,
        "sha256": frames.answer_sha256(folded.text), "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens, "cached_tokens": usage.cached_tokens,
        "dropped_turns": usage.dropped_turns, "engine_s": usage.engine_s, "queue_ms": usage.queue_ms,
        "prefill_ms": usage.prefill_ms, "decode_ms": usage.decode_ms, "tokens_per_s": usage.tokens_per_s,
        "mean_rows": usage.mean_rows, "kv_blocks": usage.kv_blocks,
    }  # fmt: skip
    with transaction.atomic():
        if statements.update(Generation, {"id": row.id, "status": Status.ACCEPTED}, **ended) != 1:
            return False  # Another delivery of this outcome got here first.
        quotas.settle(
            generation_id=row.id, model=row.model, prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens, gpu_seconds=usage.engine_s, now=service_clock.now(),
        )  # fmt: skip
    for name, value in ended.items():
        setattr(row, name, value)
    metrics.ended(status=end.status, usage=usage)
    return True


def _say_stored(row: Generation, run: int, *, is_new: bool) -> Stored:
    end = end_of_row(row)
    channels = scripts.stored(generation_id=str(row.id), model=row.model, lane=row.lane, end=end)
    return Stored(generation=row, end=end, run=run, channels=channels, is_new=is_new)
