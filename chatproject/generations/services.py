"""Stop a generation, from anywhere, and forget those whose conversation or user goes."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence

import redis
from django.db import transaction

from chatproject import service_clock
from chatproject.accounts import quotas
from chatproject.contract.errors import ContractError, FinishReason
from chatproject.contract.frames import End
from chatproject.contract.messages import Control, Lease, Usage
from chatproject.generations import dispatch, scripts, selectors
from chatproject.generations.models import Generation, Status

log = logging.getLogger(__name__)
CANCELLED = End(status="cancelled", reason=FinishReason.CANCELLED)


def stop(*, user_id: uuid.UUID | str, generation_id: uuid.UUID | str) -> None:
    """Ask for the end of a generation; nothing happens when it has ended. Raises Refused(not_found) for foreign ids."""
    stop_row(selectors.owned(user_id=user_id, generation_id=generation_id))


def stop_row(row: Generation) -> None:
    """Note the wish in the row, then tell Redis; the sweeper repeats it when Redis is away."""
    asked = Generation.objects.filter(id=row.id, status=Status.ACCEPTED, cancel_requested_at=None).update(
        cancel_requested_at=service_clock.now()
    )
    if asked or row.status == Status.ACCEPTED:
        transaction.on_commit(lambda: push_cancel(row))


def push_cancel(row: Generation) -> None:
    """Carry a noted wish to Redis: out of the queue, or to the worker that runs it. Never raises."""
    generation_id = str(row.id)
    try:
        answer, detail = scripts.cancel(generation_id=generation_id, model=row.model, lane=row.lane, end=CANCELLED)
        if answer == "asked" and detail:
            scripts.tell_worker(Lease.parse(detail).slot, Control(kind="cancel", generation_id=generation_id))
        elif answer in ("written", "ended"):
            dispatch.ask_to_store(generation_id)
    except (*dispatch.AWAY, ContractError, redis.RedisError) as error:
        log.warning("the stop of %s waits for the sweeper: %r", generation_id, error)


def forget(*, generation_ids: Iterable[uuid.UUID | str]) -> None:
    """Stop generations and drop their logs and rows; the ledger stays. Call inside the transaction that deletes."""
    rows = list(Generation.objects.filter(id__in=list(generation_ids)).defer("request", "answer"))
    unfinished = [row for row in rows if row.status == Status.ACCEPTED]
    for row, (usage, num_tokens) in zip(unfinished, _used_so_far(unfinished), strict=True):
        _settle_unfinished(row, usage, num_tokens)
    for row in rows:
        transaction.on_commit(lambda row=row: _forget_in_redis(row))  # type: ignore[misc]
    Generation.objects.filter(id__in=[row.id for row in rows]).delete()


def _used_so_far(rows: Sequence[Generation]) -> list[tuple[Usage | None, int]]:
    """Return what the log of each says it took, and its tokens; nothing when Redis is away.

    The one call of Redis inside a transaction: no later moment knows what was used, and the deletion of a user begins
    outside our hands. It is one round trip for all, a second at most.
    """
    try:
        logs = selectors.logs_of([str(row.id) for row in rows]) if rows else {}
    except (redis.RedisError, ContractError):
        return [(None, 0) for _ in rows]
    folded = [logs[str(row.id)] for row in rows]
    return [(log_.end.usage if log_.end else None, len(log_.tokens)) for log_ in folded]


def _settle_unfinished(row: Generation, usage: Usage | None, tokens: int) -> None:
    """Charge what a generation took until now, because nobody will when the row is gone."""
    quotas.settle(
        generation_id=row.id, model=row.model, prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else tokens,
        gpu_seconds=usage.engine_s if usage else 0.0, now=service_clock.now(),
    )  # fmt: skip


def _forget_in_redis(row: Generation) -> None:
    try:
        push_cancel(row)
        # The worker finds the stop within a second and its log fenced; records then finds no row and drops the rest.
        scripts.stored(generation_id=str(row.id), model=row.model, lane=row.lane, end=CANCELLED)
    except redis.RedisError as error:
        log.warning("what Redis holds of %s goes with its expiry: %r", row.id, error)
