"""Reads of generations: rows by owner, logs by id, and what the workers say."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

import redis
from django.core.exceptions import ValidationError

from chatproject import redis_client
from chatproject.accounts import quotas
from chatproject.accounts.models import Plan, User
from chatproject.contract import frames, names
from chatproject.contract.errors import ContractError, Refusal
from chatproject.contract.frames import Log
from chatproject.contract.messages import GenerationRequest, ModelStatus, WorkerStatus
from chatproject.generations.errors import Refused
from chatproject.generations.models import Generation, ServedModel
from chatproject.remembered import Remembered


def owned(*, user_id: uuid.UUID | str, generation_id: uuid.UUID | str) -> Generation:
    """Return the user's generation. Raises Refused(not_found) for foreign and unknown ids alike."""
    try:
        return Generation.objects.defer("request").get(id=generation_id, user_id=user_id)
    except (Generation.DoesNotExist, ValidationError, ValueError) as error:
        raise Refused(Refusal.NOT_FOUND) from error


def request_of(generation: Generation) -> GenerationRequest:
    """Return the request as accepted, with the attempt of the row."""
    return GenerationRequest.from_json(json.dumps(generation.request | {"attempt": generation.attempt}))


def log_of(generation_id: str) -> Log:
    """Return the folded log; an empty one when there is none. Raises redis.RedisError and ContractError."""
    return logs_of([generation_id])[generation_id]


def logs_of(generation_ids: Sequence[str]) -> dict[str, Log]:
    """Return the folded log of each by its id, in one round trip. Raises as `log_of`."""
    pipe = redis_client.client().pipeline(transaction=False)
    for id_ in generation_ids:
        pipe.xrange(names.log_key(id_))
    return {id_: frames.fold(id_, entries) for id_, entries in zip(generation_ids, pipe.execute(), strict=True)}


def models_for(user: User) -> list[ServedModel]:
    """Return the enabled models that the user's plan allows, the default first."""
    plan_id = quotas.plan_of(user).pk
    return [model for model, plan_ids in _enabled() if not plan_ids or plan_id in plan_ids]


def model_for(user: User, slug: str | None) -> ServedModel:
    """Return the named model, or the default. Raises Refused(model_unknown) when the user has none such."""
    for model in models_for(user):
        if slug is None or model.slug == slug:
            return model
    raise Refused(Refusal.MODEL_UNKNOWN, f"There is no model {slug!r} for you." if slug else "")


def model_status(slug: str) -> ModelStatus | None:
    """Return what the workers last said of a model; None when they never did or Redis is away."""
    try:
        text: Any = redis_client.client().get(names.model_key(slug))
        return ModelStatus.from_json(text) if text else None
    except (redis.RedisError, ContractError):
        return None


def waiting(slug: str) -> dict[names.Lane, int]:
    """Return how many wait for a model, by lane. Raises redis.RedisError."""
    pipe = redis_client.client().pipeline(transaction=False)
    for lane in names.LANES:
        pipe.zcard(names.wait_key(slug, lane))
    return dict(zip(names.LANES, pipe.execute(), strict=True))


def lines(slug: str, *, num_users: int) -> dict[names.Lane, dict[str, int]]:
    """Return how many wait of each of the users whose turn is next, by lane. Raises redis.RedisError."""
    pipe = redis_client.client().pipeline(transaction=False)
    for lane in names.LANES:
        pipe.zrange(names.turns_key(slug, lane), 0, num_users - 1)
    users: dict[names.Lane, list[str]] = dict(zip(names.LANES, pipe.execute(), strict=True))
    for lane in names.LANES:
        for user in users[lane]:
            pipe.zcard(names.line_key(slug, lane, user))
    sizes = iter(pipe.execute())
    # A line that was left between the two looks is empty.
    return {lane: {user: size for user in users[lane] if (size := next(sizes))} for lane in names.LANES}


def workers() -> list[WorkerStatus]:
    """Return the workers alive now, by slot. Raises redis.RedisError."""
    client = redis_client.client()
    slots: Any = client.smembers(names.WORKERS_KEY)
    texts: Any = client.mget([names.worker_key(slot) for slot in sorted(slots)]) if slots else []
    return [WorkerStatus.from_json(text) for text in texts if text]


def _read_enabled() -> list[tuple[ServedModel, frozenset[int]]]:
    models = ServedModel.objects.filter(is_enabled=True).prefetch_related("plans")
    found = [(model, frozenset(plan.pk for plan in model.plans.all())) for model in models]
    return sorted(found, key=lambda each: (not each[0].is_default, each[0].slug))


_enabled = Remembered(_read_enabled)
_enabled.forget_when_saved(ServedModel, Plan)
