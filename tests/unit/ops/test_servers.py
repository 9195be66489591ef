"""The servers of the tests are real ones, and are gone afterwards."""

from __future__ import annotations

import psycopg
import pytest
import redis

from tests.servers import redis_server


@pytest.mark.needs("redis")
def test_a_test_gets_an_empty_redis_of_its_own(fresh_redis_url: str) -> None:
    client = redis.Redis.from_url(fresh_redis_url)
    assert client.dbsize() == 0
    assert client.set("alice", "hello")


@pytest.mark.needs("redis")
def test_a_server_is_gone_after_its_block() -> None:
    with redis_server() as url:
        assert redis.Redis.from_url(url).ping()
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(url).ping()


@pytest.mark.needs("postgresql")
def test_postgresql_runs_for_root_and_for_others(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("select current_user").fetchone() == ("chat",)
