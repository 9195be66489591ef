"""A day's use is never more than its limit, is charged once, and leaves nothing held."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.db import transaction

from chatproject import statements
from chatproject.accounts import quotas
from chatproject.accounts.errors import Refused
from chatproject.accounts.models import DailyUse, Plan, Reservation, UsageRecord, User
from chatproject.contract.errors import Refusal
from tests.unit import races

EVENING = datetime(2026, 5, 4, 23, 59, 0, tzinfo=UTC)
AFTER_MIDNIGHT = datetime(2026, 5, 5, 0, 1, 0, tzinfo=UTC)


@pytest.fixture
def alice(db: None) -> User:
    return User.objects.create_user("alice", plan=Plan.objects.get(name="team"))


def reserve(user: User, *, tokens: int = 100, gpu_seconds: float = 1.0, now: datetime = EVENING) -> uuid.UUID:
    generation_id = uuid.uuid4()
    quotas.reserve(user=user, generation_id=generation_id, tokens=tokens, gpu_seconds=gpu_seconds, now=now)
    return generation_id


def settle(generation_id: uuid.UUID, *, tokens: int = 30, gpu_seconds: float = 0.25) -> bool:
    return quotas.settle(
        generation_id=generation_id, model="m", prompt_tokens=10, completion_tokens=tokens - 10,
        gpu_seconds=gpu_seconds, now=AFTER_MIDNIGHT,
    )  # fmt: skip


@pytest.mark.parametrize("database", races.DATABASES)
def test_threads_together_stay_within_the_limit_and_settle_once(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert races.run("tests.unit.accounts.race", database, tmp_path, request) == {
        "kept": 25, "held": 250, "settled": 25, "reserved": 0, "gpu_reserved": 0.0, "used": 75, "generations": 25,
        "reservations": 0, "records": 25, "gpu_equal": True,
    }  # fmt: skip


def test_a_refusal_says_which_limit_and_when_to_try_again(alice: User) -> None:
    alice.tokens_per_day, alice.gpu_seconds_per_day = 150, 3.0
    alice.save()
    reserve(alice)
    with pytest.raises(Refused, match="150 a day") as tokens:
        reserve(alice, tokens=60)
    assert tokens.value.code is Refusal.QUOTA_EXCEEDED
    assert tokens.value.retry_after_s == 60  # 23:59 UTC
    with pytest.raises(Refused, match="GPU-seconds"):
        reserve(alice, tokens=1, gpu_seconds=2.5)
    use = quotas.use_today(alice, now=EVENING)
    assert (use.tokens_reserved, use.gpu_seconds_reserved, use.generations) == (100, 1.0, 1)
    assert Reservation.objects.count() == 1


def test_a_request_larger_than_the_whole_day_is_not_told_to_wait(alice: User) -> None:
    alice.tokens_per_day = 50
    alice.save()
    with pytest.raises(Refused, match="fewer tokens") as refusal:
        reserve(alice)
    assert refusal.value.retry_after_s is None
    assert not DailyUse.objects.exists()


@pytest.mark.parametrize(
    "changed",
    [{"is_active": False}, {"plan": None}, {"requests_per_minute": 9}, {"tokens_per_day": 999},
     {"gpu_seconds_per_day": 9.5}, {"concurrent": 9}, None],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("is_together", [False, True], ids=["step by step", "together"])
def test_nothing_is_reserved_by_rights_that_the_user_no_longer_has(
    alice: User, changed: dict[str, object] | None, is_together: bool
) -> None:
    plan = Plan.objects.create(name="own", tokens_per_day=10**9)
    User.objects.filter(pk=alice.pk).update(plan=plan)
    judged_by = User.objects.get(pk=alice.pk)
    if changed is None:
        alice.delete()
    else:
        User.objects.filter(pk=alice.pk).update(**changed)
    with pytest.raises(statements.Unmet if is_together else Refused) as refusal:
        reserve_in(statements.together if is_together else transaction.atomic, judged_by)
    if isinstance(refusal.value, Refused):
        assert refusal.value.code is Refusal.UNAVAILABLE
    assert (DailyUse.objects.count(), Reservation.objects.count()) == (0, 0)
    if changed and "is_active" not in changed:
        reserve_in(statements.together, User.objects.get(pk=alice.pk))
        assert Reservation.objects.count() == 1


def reserve_in(transact: Callable[[], AbstractContextManager[None]], user: User) -> None:
    with transact():
        reserve(user)


def test_an_answer_over_midnight_counts_for_the_day_it_was_accepted(alice: User) -> None:
    generation_id = reserve(alice)
    assert settle(generation_id)
    use = DailyUse.objects.get()
    assert use.day == EVENING.date()
    assert (use.tokens_used, use.tokens_reserved, use.gpu_seconds_used, use.gpu_seconds_reserved) == (30, 0, 0.25, 0.0)


def test_settling_again_charges_nothing(alice: User) -> None:
    generation_id = reserve(alice)
    assert settle(generation_id)
    assert not settle(generation_id, tokens=99)
    assert DailyUse.objects.get().tokens_used == 30
    assert UsageRecord.objects.get().completion_tokens == 20


def test_uneven_seconds_leave_nothing_held(alice: User) -> None:
    held = [reserve(alice, gpu_seconds=seconds) for seconds in (0.1, 0.2, 0.3, 1 / 3, 1e-9)]
    for generation_id in held:
        settle(generation_id)
    assert DailyUse.objects.get().gpu_seconds_reserved == 0.0


def test_a_users_own_limit_goes_before_the_plans(alice: User) -> None:
    alice.concurrent = 1
    limits = quotas.limits_of(alice)
    assert (limits.concurrent, limits.requests_per_minute, limits.plan) == (1, 60, "team")


def test_a_user_without_a_plan_has_the_default_one(db: None) -> None:
    bob = User.objects.create_user("bob")
    assert quotas.limits_of(bob).plan == "free"
    Plan.objects.update(is_default=False)
    assert quotas.limits_of(bob).tokens_per_day == 200_000


def test_the_ledger_outlives_its_user(alice: User) -> None:
    settle(reserve(alice))
    alice.delete()
    record = UsageRecord.objects.get()
    assert (record.user, record.username, record.prompt_tokens) == (None, "alice", 10)
    assert not DailyUse.objects.exists()
