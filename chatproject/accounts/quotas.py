"""What a user may use in a day: reserve at accept, settle at the end. Nothing else changes a day's use.

A reservation is one conditional upsert of the user's day, so it holds under concurrency on SQLite and PostgreSQL
alike. The day of a generation is the UTC day on which it was accepted, also when it ends after midnight.
Knows no generation but its id, and no clock: callers pass ``now``.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, TypeVar

from django.db import connection, transaction
from django.utils import timezone

from chatproject import statements
from chatproject.accounts.errors import Refused
from chatproject.accounts.models import DailyUse, Plan, Reservation, UsageRecord, User
from chatproject.contract.errors import Refusal
from chatproject.remembered import Remembered

# Multiples of a power of two add and subtract without rounding: after the last settlement the reserved sum is 0.0,
# not 2.7e-17.
GPU_SECOND_PARTS: Final = 2**20

_T = TypeVar("_T", int, float)


_STRICT: Final = Plan(name="", requests_per_minute=20, tokens_per_day=200_000, gpu_seconds_per_day=3600.0, concurrent=2)

_HOLD: Final = """
    INSERT INTO accounts_dailyuse AS today
        (user_id, day, tokens_reserved, gpu_seconds_reserved, tokens_used, gpu_seconds_used, generations)
    SELECT id, %s, %s, %s, 0, 0, 1 FROM accounts_user
    WHERE id = %s AND is_active AND plan_id IS NOT DISTINCT FROM %s
        AND requests_per_minute IS NOT DISTINCT FROM %s AND tokens_per_day IS NOT DISTINCT FROM %s
        AND gpu_seconds_per_day IS NOT DISTINCT FROM %s AND concurrent IS NOT DISTINCT FROM %s
    ON CONFLICT (user_id, day) DO UPDATE SET
        tokens_reserved = today.tokens_reserved + excluded.tokens_reserved,
        gpu_seconds_reserved = today.gpu_seconds_reserved + excluded.gpu_seconds_reserved,
        generations = today.generations + 1
    WHERE 1 = 1"""
_JUDGED_BY: Final = ("plan_id", "requests_per_minute", "tokens_per_day", "gpu_seconds_per_day", "concurrent")
_HAS_TOKENS: Final = " AND today.tokens_used + today.tokens_reserved + excluded.tokens_reserved <= %s"
_HAS_SECONDS: Final = " AND today.gpu_seconds_used + today.gpu_seconds_reserved + excluded.gpu_seconds_reserved <= %s"
_RELEASE: Final = """
    DELETE FROM accounts_reservation WHERE generation_id = %s
    RETURNING user_id, (SELECT username FROM accounts_user WHERE id = user_id), day, tokens, gpu_seconds"""
_SPEND: Final = """
    UPDATE accounts_dailyuse SET
        tokens_reserved = tokens_reserved - %s, tokens_used = tokens_used + %s,
        gpu_seconds_reserved = gpu_seconds_reserved - %s, gpu_seconds_used = gpu_seconds_used + %s
    WHERE user_id = %s AND day = %s"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What holds for one user: the plan's limits, or the user's own where set. None means no limit."""

    requests_per_minute: int | None
    tokens_per_day: int | None
    gpu_seconds_per_day: float | None
    concurrent: int | None
    lane: str
    weight: float
    plan: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UseToday:
    """One user's UTC day so far."""

    tokens_used: int
    tokens_reserved: int
    gpu_seconds_used: float
    gpu_seconds_reserved: float
    generations: int
    limits: Limits


def _read_plans() -> dict[int, Plan]:
    return {plan.pk: plan for plan in Plan.objects.all()}


_plans = Remembered(_read_plans)
_plans.forget_when_saved(Plan)


def plan_of(user: User) -> Plan:
    """Return the user's plan, or the default one, as it was at most a second ago."""
    if user.plan_id is None:
        return default_plan()
    plan = _plans().get(user.plan_id)
    if plan is None:  # made in another process within the second
        plan = Plan.objects.get(pk=user.plan_id)
    return plan


def default_plan() -> Plan:
    """Return the plan of users without one; when no plan is the default, a strict one that is in no table."""
    return next((plan for plan in _plans().values() if plan.is_default), _STRICT)


def limits_of(user: User, *, plan: Plan | None = None) -> Limits:
    """Return what holds for ``user``; ``plan`` spares the look-up where the caller has it."""
    plan = plan or plan_of(user)
    return Limits(
        requests_per_minute=_first(user.requests_per_minute, plan.requests_per_minute),
        tokens_per_day=_first(user.tokens_per_day, plan.tokens_per_day),
        gpu_seconds_per_day=_first(user.gpu_seconds_per_day, plan.gpu_seconds_per_day),
        concurrent=_first(user.concurrent, plan.concurrent),
        lane=plan.lane,
        weight=plan.weight,
        plan=plan.name,
    )


def reserve(*, user: User, generation_id: uuid.UUID | str, tokens: int, gpu_seconds: float, now: datetime) -> None:
    """Hold back what a generation may cost at most. Only in the accept transaction: it locks the user's day.

    The database holds ``user`` against the row: who is not active any more, or has other limits by now, gets nothing.
    Raises Refused(quota_exceeded) that says which limit, and when to try again, or Refused(unavailable) when the user
    has changed; nothing is written then. In `statements.together` what the database finds is Unmet.
    """
    limits, day = limits_of(user), _day(now)
    seconds = _up(gpu_seconds)
    if _is_too_much(limits, tokens, seconds):  # the first statement of a day asks no condition
        raise _why_not(user, day, limits, tokens, seconds, now)
    hold = _hold(user, day, limits, tokens, seconds)
    if statements.is_together():
        statements.must_write(*hold)
    elif statements.execute(*hold) == 0:
        raise _why_not(user, day, limits, tokens, seconds, now)
    statements.insert_values(
        Reservation,
        {"generation_id": generation_id, "user_id": user.pk, "day": day, "tokens": tokens, "gpu_seconds": seconds,
         "created_at": now},
    )  # fmt: skip


def settle(
    *,
    generation_id: uuid.UUID | str,
    model: str,
    prompt_tokens: int,
    completion_tokens: int,
    gpu_seconds: float,
    now: datetime,
) -> bool:
    """Turn a reservation into what was really used, and write the ledger. Call in the terminal transaction.

    Returns False when it was settled before: nothing is charged twice.
    """
    seconds = _near(gpu_seconds)
    with transaction.atomic(savepoint=False):
        # Of several at once only one deletes it.
        held = statements.execute_one(_RELEASE, statements.values(Reservation, generation_id=generation_id))
        if held is None:
            return False
        user_id, username, day, held_tokens, held_seconds = held
        statements.execute(
            _SPEND, [held_tokens, prompt_tokens + completion_tokens, held_seconds, seconds, user_id, day]
        )
        statements.insert_values(
            UsageRecord,
            {"generation_id": generation_id, "user_id": user_id, "username": username, "model": model,
             "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "gpu_seconds": seconds,
             "created_at": now},
        )  # fmt: skip
    return True


def use_today(user: User, *, now: datetime | None = None) -> UseToday:
    """Return the user's use of this UTC day beside the limits."""
    return uses_today([user], now=now or timezone.now())[user.pk]


def uses_today(users: Sequence[User], *, now: datetime) -> dict[uuid.UUID, UseToday]:
    """Return the use of many users in two queries, where their plans are loaded."""
    found = {use.user_id: use for use in DailyUse.objects.filter(user__in=users, day=_day(now))}
    default = default_plan() if any(user.plan_id is None for user in users) else None
    uses = {}
    for user in users:
        use = found.get(user.pk) or DailyUse()
        uses[user.pk] = UseToday(
            tokens_used=use.tokens_used, tokens_reserved=use.tokens_reserved, gpu_seconds_used=use.gpu_seconds_used,
            gpu_seconds_reserved=use.gpu_seconds_reserved, generations=use.generations,
            limits=limits_of(user, plan=user.plan or default),
        )  # fmt: skip
    return uses


def seconds_to_midnight(now: datetime) -> float:
    """Return the seconds until the next UTC day, when the daily limits start over."""
    tomorrow = datetime.combine(_day(now) + timedelta(days=1), time(), tzinfo=UTC)
    return max(1.0, (tomorrow - now).total_seconds())


def _hold(user: User, day: date, limits: Limits, tokens: int, seconds: float) -> tuple[str, list[Any]]:
    """Return the statement that adds to what the user's day holds back; it writes no row when there is no room."""
    # SQLite has the words of the standard since 3.39 only.
    sql = _HOLD if connection.vendor == "postgresql" else _HOLD.replace("IS NOT DISTINCT FROM", "IS")
    params = statements.values(DailyUse, day=day, tokens_reserved=tokens, gpu_seconds_reserved=seconds)
    params += statements.values(User, id=user.pk, **{name: getattr(user, name) for name in _JUDGED_BY})
    if limits.tokens_per_day is not None:
        sql += _HAS_TOKENS
        params.append(limits.tokens_per_day)
    if limits.gpu_seconds_per_day is not None:
        sql += _HAS_SECONDS
        params.append(limits.gpu_seconds_per_day)
    return sql, params


def _is_too_much(limits: Limits, tokens: int, seconds: float) -> bool:
    of_tokens, of_seconds = limits.tokens_per_day, limits.gpu_seconds_per_day
    return (of_tokens is not None and tokens > of_tokens) or (of_seconds is not None and seconds > of_seconds)


def _why_not(user: User, day: date, limits: Limits, tokens: int, seconds: float, now: datetime) -> Refused:
    row = statements.get(User, id=user.pk, is_active=True)
    if row is None or any(getattr(row, name) != getattr(user, name) for name in _JUDGED_BY):
        return Refused(Refusal.UNAVAILABLE, "Your account was changed this moment. Send it again.", retry_after_s=1)
    use = DailyUse.objects.filter(user=user, day=day).first()
    return _exceeded(use or DailyUse(user=user, day=day), limits, tokens, seconds, now)


def _exceeded(use: DailyUse, limits: Limits, tokens: int, seconds: float, now: datetime) -> Refused:
    wait_s = math.ceil(seconds_to_midnight(now))
    limit = limits.tokens_per_day
    if limit is not None and use.tokens_used + use.tokens_reserved + tokens > limit:
        what = (
            f"This needs up to {tokens:,} tokens; of your {limit:,} a day {use.tokens_used:,} are used and "
            f"{use.tokens_reserved:,} held by running answers."
        )
        alone = tokens > limit
    else:
        limit_s = limits.gpu_seconds_per_day
        if limit_s is None or use.gpu_seconds_used + use.gpu_seconds_reserved + seconds <= limit_s:
            message = "There was no room, and there is now: an answer has ended this moment. Send it again."
            return Refused(Refusal.UNAVAILABLE, message, retry_after_s=1)
        what = (
            f"This needs up to {seconds:,.1f} GPU-seconds; of your {limit_s:,.1f} a day {use.gpu_seconds_used:,.1f} "
            f"are used and {use.gpu_seconds_reserved:,.1f} held by running answers."
        )
        alone = seconds > limit_s
    way_out = "Ask for fewer tokens (max_tokens)." if alone else "Ask for fewer tokens, or try again after 00:00 UTC."
    return Refused(Refusal.QUOTA_EXCEEDED, f"{what} {way_out}", retry_after_s=None if alone else wait_s)


def _first(own: _T | None, plans: _T | None) -> _T | None:
    return plans if own is None else own


def _day(now: datetime) -> date:
    return now.astimezone(UTC).date()


def _up(seconds: float) -> float:
    return math.ceil(max(0.0, seconds) * GPU_SECOND_PARTS) / GPU_SECOND_PARTS


def _near(seconds: float) -> float:
    return round(max(0.0, seconds) * GPU_SECOND_PARTS) / GPU_SECOND_PARTS
