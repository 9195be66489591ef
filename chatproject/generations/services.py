"""Stop a generation, from anywhere, and forget those whose conversation or user goes."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable

import redis
from django.db import transaction
from django.utils import timezone

from chatproject.accounts import quotas
from chatproject.contract.errors import ContractError, FinishReason
from chatproject.contract.frames import End
from chatproject.contract.messages import Control, Lease
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
        cancel_requested_at=timezone.now()
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
    for row in rows:
        if row.status == Status.ACCEPTED:
            _settle_unfinished(row)
        transaction.on_commit(lambda row=row: _forget_in_redis(row))  # type: ignore[misc]
    Generation.objects.filter(id__in=[row.id for row in rows]).delete()


def _settle_unfinished(row: Generation) -> None:
    """Charge what the log of a running generation shows, because nobody will when the row is gone."""
    try:
        folded = selectors.log_of(str(row.id))
        usage, tokens = (folded.end.usage if folded.end else None), len(folded.tokens)
    except (redis.RedisError, ContractError):
        usage, tokens = None, 0
    quotas.settle(
        generation_id=row.id, model=row.model, prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else tokens,
        gpu_seconds=usage.engine_s if usage else 0.0, now=timezone.now(),
    )  # fmt: skip


def _forget_in_redis(row: Generation) -> None:
    try:
        push_cancel(row)
        # The worker finds the stop within a second and its log fenced; records then finds no row and drops the rest.
        scripts.stored(generation_id=str(row.id), model=row.model, lane=row.lane, end=CANCELLED)
    except redis.RedisError as error:
        log.warning("what Redis holds of %s goes with its expiry: %r", row.id, error)
