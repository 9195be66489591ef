"""A real Redis behind the web side's clients, a worker's store, and the cast."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
import redis

from chatproject import redis_client
from chatproject.accounts.models import Plan, User
from chatproject.celery import app
from chatproject.contract import broker
from chatproject.contract.messages import Turn
from chatproject.generations import admission, announcer, dispatch, model_states, scripts
from workers.store import Store


@pytest.fixture(autouse=True)
def redis_here(fresh_redis_url: str, settings) -> Iterator[str]:
    """Point everything on the web side to the test's Redis."""
    settings.REDIS_URL = fresh_redis_url
    settings.CHANNEL_LAYERS = {"default": broker.channel_layer(fresh_redis_url)}
    if app.conf.broker_url != fresh_redis_url:
        app.conf.broker_url = fresh_redis_url
        app._pool = app.amqp._producer_pool = None
    _forget_clients()
    yield fresh_redis_url
    _wait_for_announcers()
    _forget_clients()


@pytest.fixture
def server(redis_here: str) -> Iterator[redis.Redis]:
    """A plain client, to look and to break."""
    with redis.Redis.from_url(redis_here, decode_responses=True) as client:
        yield client


@pytest.fixture
def store(redis_here: str) -> Store:
    """A worker's side of Redis."""
    return Store(redis_here)


@pytest.fixture
def alice(db: None) -> User:
    return make_user("alice")


@pytest.fixture
def draft(alice: User) -> Callable[..., admission.Draft]:
    """Make a draft of Alice's; fields may be replaced."""

    def make(**fields: object) -> admission.Draft:
        defaults: dict[str, object] = {
            "generation_id": str(uuid.uuid4()), "user": alice, "client_id": str(uuid.uuid4()), "body_sha256": "b",
            "thread": uuid.uuid4(), "model": None, "turns": (Turn(role="user", text="Tell me about Mars"),),
        }  # fmt: skip
        return admission.Draft(**(defaults | fields))  # type: ignore[arg-type]

    return make


def make_user(name: str, **limits: object) -> User:
    plan = Plan.objects.create(name=f"plan-of-{name}", **limits)
    return User.objects.create(username=name, plan=plan)


def _wait_for_announcers() -> None:
    """Wait until what was accepted is announced: a thread that is late would keep a client of the Redis that was."""
    everyone = threading.Barrier(dispatch.NUM_THREADS + 1)
    for _ in range(dispatch.NUM_THREADS):
        dispatch._threads.submit(everyone.wait, 30)
    everyone.wait(30)


def _forget_clients() -> None:
    dispatch._again._waiting.clear()
    model_states.forget()
    for cached in (redis_client.client, scripts._bound, announcer.get_announcer):
        cached.cache_clear()
