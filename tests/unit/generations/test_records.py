"""The end in the log becomes the row, the ledger and the terminal frame: once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis
from django.db import IntegrityError, connection, transaction

from chatproject.accounts.models import DailyUse, Reservation, UsageRecord
from chatproject.contract import frames, names
from chatproject.contract.errors import Failure, FinishReason
from chatproject.contract.frames import End, Frame
from chatproject.contract.messages import Usage
from chatproject.generations import admission, records, scripts, selectors, services
from chatproject.generations.models import Generation
from workers.store import Store

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db]
DONE = End(
    status="done", reason=FinishReason.STOP,
    usage=Usage(
        prompt_tokens=11, completion_tokens=2, engine_s=0.25, decode_ms=40, tokens_per_s=25.0, mean_rows=3.5,
        kv_blocks=2,
    ),
)  # fmt: skip


def answered(store: Store, generation: Generation, text: str = "Mars is red.", end: End = DONE) -> None:
    """Play a worker: claim, write an answer and its end."""
    request = selectors.request_of(generation)
    scripts.enqueue(request)
    claim = store.claim(
        model=request.model, lane=request.lane, generation_id=request.generation_id, slot="w1", boot="b"
    )
    assert claim is not None
    id_, run = request.generation_id, claim.lease.run
    written = [
        Frame(generation_id=id_, run=run, seq=1, kind="started"),
        Frame(generation_id=id_, run=run, seq=2, kind="delta", text=text, tokens=(1, 2)),
        Frame(generation_id=id_, run=run, seq=3, kind="end", at=len(text), end=end),
    ]
    (answer,) = store.append([(id_, run, f"{run}-0", [(f"{run}-{frame.seq}", frame.entry()) for frame in written])])
    assert answer == "ok"


def test_answer_usage_and_ledger_are_written_once(draft, store: Store, alice) -> None:
    generation = admission.accept(draft()).generation
    answered(store, generation)
    first, second = records.store(str(generation.id)), records.store(str(generation.id))
    assert first is not None
    assert second is not None
    assert (first.is_new, second.is_new) == (True, False)
    row = Generation.objects.get()
    assert (row.status, row.answer, row.reason, row.end_seq) == ("done", "Mars is red.", "stop", 3)
    assert row.sha256 == frames.answer_sha256("Mars is red.")
    assert (row.prompt_tokens, row.completion_tokens, row.engine_s) == (11, 2, 0.25)
    assert UsageRecord.objects.get().completion_tokens == 2
    assert not Reservation.objects.exists()
    use = DailyUse.objects.get(user=alice)
    assert (use.tokens_used, use.tokens_reserved, use.gpu_seconds_used) == (13, 0, 0.25)
    assert first.end == replace(DONE, sha256=row.sha256)


def test_without_an_end_nothing_is_stored(draft) -> None:
    generation = admission.accept(draft()).generation
    assert records.store(str(generation.id)) is None
    assert Generation.objects.get().status == "accepted"


def test_a_row_that_is_terminal_already_wins(draft, store: Store) -> None:
    generation = admission.accept(draft()).generation
    answered(store, generation)
    Generation.objects.update(status="failed", code="quarantined", message="m")
    stored = records.store(str(generation.id))
    assert stored is not None
    assert (stored.end.status, stored.end.code) == ("failed", Failure.QUARANTINED)
    assert Generation.objects.get().answer == ""


def test_nothing_leaves_a_terminal_state(draft) -> None:
    generation = admission.accept(draft()).generation
    Generation.objects.update(status="done")
    for status in ("accepted", "cancelled"):
        with pytest.raises(IntegrityError, match="stays as it ended"), transaction.atomic():
            Generation.objects.filter(id=generation.id).update(status=status)
    Generation.objects.filter(id=generation.id).update(status="done")
    assert connection.is_usable()


def test_tokens_in_the_log_are_charged_when_a_stop_ended_it(draft, store: Store, server: redis.Redis) -> None:
    generation = admission.accept(draft()).generation
    request = selectors.request_of(generation)
    scripts.enqueue(request)
    claim = store.claim(model="demo", lane=request.lane, generation_id=request.generation_id, slot="w", boot="b")
    assert claim is not None
    run = claim.lease.run
    written = [
        Frame(generation_id="g", run=run, seq=1, kind="started"),
        Frame(generation_id="g", run=run, seq=2, kind="delta", text="Half", tokens=(1, 2, 3)),
    ]
    store.append([(request.generation_id, run, f"{run}-0", [(f"{run}-{f.seq}", f.entry()) for f in written])])
    assert store.hand_back(claim) == "waiting"
    services.stop(user_id=generation.user_id, generation_id=generation.id)
    services.push_cancel(generation)
    stored = records.store(request.generation_id)
    assert stored is not None
    row = Generation.objects.get()
    assert (row.status, row.reason, row.answer, row.completion_tokens) == ("cancelled", "cancelled", "Half", 3)


def test_a_deleted_conversations_generation_leaves_the_ledger_and_nothing_in_redis(
    draft, store: Store, server: redis.Redis, django_capture_on_commit_callbacks
) -> None:
    generation = admission.accept(draft()).generation
    answered(store, generation)
    with django_capture_on_commit_callbacks(execute=True):
        services.forget(generation_ids=[generation.id])
    records.store(str(generation.id))
    assert not Generation.objects.exists()
    assert not Reservation.objects.exists()
    assert UsageRecord.objects.get().completion_tokens == 2
    assert not server.exists(names.log_key(str(generation.id)), names.lease_key(str(generation.id)))


def test_a_foreign_generation_cannot_be_stopped(draft) -> None:
    from chatproject.accounts.errors import Refused
    from tests.unit.generations.conftest import make_user

    generation = admission.accept(draft()).generation
    with pytest.raises(Refused) as caught:
        services.stop(user_id=make_user("bob").pk, generation_id=generation.id)
    assert caught.value.code == "not_found"
    assert Generation.objects.get().cancel_requested_at is None
