"""Who tries too often waits, over all processes, and also while Redis is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from chatproject import redis_client
from chatproject.accounts import ratelimits
from chatproject.accounts.errors import Refused
from tests.servers import free_port


@pytest.fixture
def use_redis(settings: Any) -> Iterator[Callable[[str], None]]:
    def use(url: str) -> None:
        settings.REDIS_URL = url
        redis_client.client.cache_clear()

    yield use
    redis_client.client.cache_clear()


def try_thrice(who: str) -> None:
    for _ in range(3):
        ratelimits.check(name="sign-in", who=who, limit=3, window_s=60)


@pytest.mark.needs("redis")
def test_the_fourth_try_waits_and_others_do_not(use_redis: Callable[[str], None], fresh_redis_url: str) -> None:
    use_redis(fresh_redis_url)
    try_thrice("alice")
    with pytest.raises(Refused, match="Try again in") as refusal:
        ratelimits.check(name="sign-in", who="alice", limit=3, window_s=60)
    assert 0 < (refusal.value.retry_after_s or 0) <= 60
    try_thrice("bob")
    ratelimits.forgive(name="sign-in", who="alice")
    try_thrice("alice")
    with redis.Redis.from_url(fresh_redis_url) as client:
        assert all(client.ttl(key) > 0 for key in client.keys("*"))


def test_tries_are_still_counted_while_redis_is_away(use_redis: Callable[[str], None]) -> None:
    use_redis(f"redis://127.0.0.1:{free_port()}/0")
    try_thrice("charlie")
    with pytest.raises(Refused):
        ratelimits.check(name="sign-in", who="charlie", limit=3, window_s=60)
