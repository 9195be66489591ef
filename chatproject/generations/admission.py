"""Accept a generation, or refuse it and leave no trace: validate, queue, rate, quota, then one row and one reservation.

Joins the caller's transaction, so that a message and its generation are one. Redis is told after the commit only.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.db import IntegrityError, transaction

from chatproject import metrics, service_clock, statements
from chatproject.accounts import quotas
from chatproject.accounts.models import User
from chatproject.contract.errors import Refusal
from chatproject.contract.messages import GenerationRequest, ModelStatus, SamplingParams, Turn
from chatproject.contract.names import Lane
from chatproject.generations import announcer, backlog, context, dispatch, model_states, selectors
from chatproject.generations.errors import Refused
from chatproject.generations.models import Generation, ServedModel, Status
from chatproject.generations.params import Params, is_storable, parse_params
from chatproject.generations.sampling_defaults import sampling_defaults

__all__ = ["Accepted", "Draft", "Params", "accept", "parse_params"]

DEFAULT_MAX_TOKENS: Final = 1024
ASSUMED_SECONDS_PER_TOKEN: Final = 0.02  # until a worker has measured the model
MAX_CLIENT_ID: Final = 64

_MINUTE: Final = timedelta(minutes=1)
# The status stands in the text: a plan that is made once for all must know how rare it is.
_UNANSWERED: Final = "SELECT count(*) FROM generations_generation WHERE user_id = %s AND status = 'accepted'"
_RECENT: Final = "SELECT count(*) FROM generations_generation WHERE user_id = %s AND accepted_at > %s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a sender asks for, before anything is checked against the user's rights."""

    generation_id: str  # chosen by the caller, so that its reader can be attached before the commit
    user: User
    client_id: str  # the sender's own id; the same id and body again is the same generation
    body_sha256: str
    thread: uuid.UUID | None
    model: str | None  # slug; None = the default
    turns: tuple[Turn, ...]
    params: Params = Params()
    origin: str = "chat"
    watcher: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """An accepted generation; ``is_new`` is False when the same message had come before."""

    generation: Generation
    is_new: bool


def accept(draft: Draft) -> Accepted:
    """Write the generation and its reservation, and dispatch after the commit. Raises Refused; nothing is kept then.

    Whether the message came before is asked only when it cannot be accepted: a key then forbids its row, or it is
    refused as one too many.
    """
    try:
        return Accepted(generation=statements.at_once(lambda: accept_new(draft)), is_new=True)
    except Refused as error:
        refused = error
    except IntegrityError:
        refused = Refused(Refusal.CONVERSATION_BUSY)
    try:
        earlier = find_earlier(user=draft.user, client_id=draft.client_id, body_sha256=draft.body_sha256)
    except Refused as reused:
        raise counted(reused) from None
    if earlier is not None:
        return Accepted(generation=earlier, is_new=False)
    raise counted(refused)


def accept_new(draft: Draft) -> Generation:
    """As `accept`, of a message that has probably not come before, in a transaction of the caller's.

    Raises Refused and IntegrityError: the caller undoes that transaction, asks `find_earlier`, and if there is none
    raises it `counted`, or that the conversation is busy. In `statements.together` limits that do not hold are
    IntegrityError too.
    """
    _check_form(draft)
    now = service_clock.now()
    model = selectors.model_for(draft.user, draft.model)
    status = model_states.latest(model.slug)
    prompt_tokens, max_tokens = _fit(draft, model, status)
    limits = quotas.limits_of(draft.user)
    backlog.check(model.slug, Lane(limits.lane), str(draft.user.pk))
    seconds_per_token = status.seconds_per_token if status is not None else 0.0
    # First, because it locks the user's day: the counts below cannot change until the commit.
    quotas.reserve(
        user=draft.user,
        generation_id=uuid.UUID(draft.generation_id),
        tokens=prompt_tokens + max_tokens,
        gpu_seconds=max_tokens * (seconds_per_token or ASSUMED_SECONDS_PER_TOKEN),
        now=now,
    )
    if statements.is_together():
        _demand_room(draft.user, model, limits, now)
    else:
        _check_room(draft.user, model, limits, now)
    request = _request(draft, model, Lane(limits.lane), limits.weight, max_tokens, now)
    text = request.to_json()
    generation = Generation(
        id=uuid.UUID(draft.generation_id), user_id=draft.user.pk, client_id=draft.client_id,
        body_sha256=draft.body_sha256, thread=draft.thread, origin=draft.origin, model=model.slug, lane=request.lane,
        accepted_at=now, expires_at=_expiry(now),
    )  # fmt: skip
    statements.insert(generation, instead={"request": text})
    transaction.on_commit(lambda: _announce(request, text, draft.thread))
    return generation


def counted(refused: Refused) -> Refused:
    """Count a message that is refused, and return what was raised."""
    metrics.refused(code=refused.code)
    return refused


def find_earlier(*, user: User, client_id: str, body_sha256: str) -> Generation | None:
    """Return the generation this message was accepted as before. Raises Refused(id_reused) for another body."""
    earlier = Generation.objects.filter(user=user, client_id=client_id).first()
    if earlier is not None and earlier.body_sha256 != body_sha256:
        raise Refused(Refusal.ID_REUSED)
    return earlier


def _announce(request: GenerationRequest, text: str, thread: uuid.UUID | None) -> None:
    # The user's other tabs hear of it when a worker has: told at once, it would take the first token's time.
    notice = functools.partial(
        announcer.get_announcer().notice, user_id=request.user_id, thread=str(thread) if thread else None,
        generation_id=request.generation_id, status="accepted",
    )  # fmt: skip
    dispatch.announce(request, text, then=notice)
    model_states.note_accepted(request.model, request.lane, request.user_id)
    metrics.accepted(lane=request.lane)


def _check_form(draft: Draft) -> None:
    if not 1 <= len(draft.client_id) <= MAX_CLIENT_ID:
        raise Refused(Refusal.BAD_PARAMS, f"The message id must have 1 to {MAX_CLIENT_ID} characters.")
    if not draft.turns or not any(turn.text.strip() for turn in draft.turns if turn.role == "user"):
        raise Refused(Refusal.EMPTY_TEXT)
    if not all(is_storable(turn.text) for turn in draft.turns):
        raise Refused(Refusal.BAD_PARAMS, "The text may not hold NUL or broken Unicode.")


def _fit(draft: Draft, model: ServedModel, status: ModelStatus | None) -> tuple[int, int]:
    """Return (prompt tokens at most, max_tokens). Raises Refused when the last turn alone does not fit."""
    known = [tokens for tokens in (model.context_tokens, status.context_tokens if status else 0) if tokens]
    turn_tokens = status.turn_tokens if status else context.DEFAULT_TURN_TOKENS
    wanted = draft.params.max_tokens or DEFAULT_MAX_TOKENS
    if not known:
        return context.count_tokens(model.directory, draft.turns, turn_tokens=turn_tokens), wanted
    limit = min(known)
    always = [turn for turn in draft.turns[:-1] if turn.role == "system"] + [draft.turns[-1]]
    least = context.count_tokens(model.directory, always, turn_tokens=turn_tokens)
    if least + 1 > limit:
        raise Refused(
            Refusal.CONTEXT_TOO_LONG,
            f"The message takes about {least} tokens; this model's context holds {limit}. Shorten it.",
        )
    most = least
    if len(always) < len(draft.turns):
        most = min(context.count_tokens(model.directory, draft.turns, turn_tokens=turn_tokens), limit)
    return most, min(wanted, limit - least)


def _demand_room(user: User, model: ServedModel, limits: quotas.Limits, now: datetime) -> None:
    """Have the database count what `_check_room` counts; it tells no more than that there is no room."""
    conditions, params = [], []
    most_unanswered = backlog.limit_of_user(model.slug)
    for most, condition, values in (
        (limits.concurrent, _UNANSWERED, {}),
        (limits.requests_per_minute, _RECENT, {"accepted_at": now - _MINUTE}),
        (most_unanswered, _UNANSWERED + " AND model = %s", {"model": model.slug}),
    ):
        if most is not None:
            conditions.append(f"({condition}) < %s")
            params += [*statements.values(Generation, user_id=user.pk, **values), most]
    if conditions:
        statements.must_be(" AND ".join(conditions), params)


def _check_room(user: User, model: ServedModel, limits: quotas.Limits, now: datetime) -> None:
    if limits.concurrent is not None and _num_unanswered(user) >= limits.concurrent:
        raise Refused(
            Refusal.TOO_MANY_RUNNING,
            f"Your plan allows {limits.concurrent} answers at a time. Wait for one to end, or stop one.",
            retry_after_s=2,
        )
    if limits.requests_per_minute is not None:
        since = now - _MINUTE
        mine = Generation.objects.filter(user=user, accepted_at__gt=since)
        recent = list(mine.order_by("-accepted_at").values_list("accepted_at", flat=True))
        if len(recent) >= limits.requests_per_minute:
            index = limits.requests_per_minute - 1
            wait_s = 60.0 if index < 0 else max(1.0, (recent[index] - since).total_seconds())
            raise Refused(
                Refusal.RATE_LIMITED,
                f"Your plan allows {limits.requests_per_minute} requests per minute. Try again in {wait_s:.0f} s.",
                retry_after_s=round(wait_s, 1),
            )
    if backlog.limit_of_user(model.slug) is not None:
        backlog.check_user(model.slug, _num_unanswered(user, model=model.slug))


def _num_unanswered(user: User, **where: str) -> int:
    return Generation.objects.filter(user=user, status=Status.ACCEPTED, **where).count()


def _request(
    draft: Draft, model: ServedModel, lane: Lane, weight: float, max_tokens: int, now: datetime
) -> GenerationRequest:
    wish, default = draft.params, sampling_defaults(model.directory)
    sampling = SamplingParams(
        temperature=default.temperature if wish.temperature is None else wish.temperature,
        top_p=default.top_p if wish.top_p is None else wish.top_p,
        top_k=default.top_k if wish.top_k is None else wish.top_k,
        max_tokens=max_tokens,
        seed=secrets.randbits(63) if wish.seed is None else wish.seed,
        stop=wish.stop,
        min_p=default.min_p if wish.min_p is None else wish.min_p,
        repetition_penalty=(default.repetition_penalty if wish.repetition_penalty is None else wish.repetition_penalty),
        presence_penalty=wish.presence_penalty or 0.0,
        frequency_penalty=wish.frequency_penalty or 0.0,
        logit_bias=wish.logit_bias,
        logprobs=wish.logprobs,
    )
    return GenerationRequest(
        generation_id=draft.generation_id, model=model.slug, lane=lane, user_id=str(draft.user.pk), weight=weight,
        turns=draft.turns, params=sampling, accepted_ms=int(now.timestamp() * 1000),
        expires_ms=int(_expiry(now).timestamp() * 1000), watcher=draft.watcher,
    )  # fmt: skip


def _expiry(now: datetime) -> datetime:
    return now + timedelta(seconds=settings.QUEUE_MAX_WAIT_S)


def as_json(params: Params) -> str:
    """Return the params in a canonical form, for the body's digest."""
    return json.dumps(dataclasses.asdict(params), sort_keys=True)
