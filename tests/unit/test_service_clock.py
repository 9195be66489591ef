"""One clock for all hosts: a host that is an hour off neither expires nor overtakes what others accepted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from django.utils import timezone

from chatproject import service_clock
from chatproject.generations.streaming.hub import Hub


@pytest.fixture(autouse=True)
def own_clock_again() -> Iterator[None]:
    service_clock._is_measured = False
    yield
    service_clock._ahead, service_clock._is_measured = timedelta(), False


def off_by(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: now() + timedelta(seconds=seconds))


@pytest.mark.needs("redis")
@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 2.0])
def test_a_host_whose_clock_is_off_tells_the_time_of_redis(monkeypatch, fresh_redis_url: str, seconds: float) -> None:
    true = timezone.now()
    off_by(monkeypatch, seconds)
    with redis.Redis.from_url(fresh_redis_url) as client:
        service_clock.measure(client)
    assert abs((service_clock.now() - true).total_seconds()) < 1.0
    assert abs(service_clock.now_ms() / 1000 - true.timestamp()) < 1.0


@pytest.mark.django_db
def test_where_redis_cannot_be_asked_the_database_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    true = timezone.now()
    off_by(monkeypatch, 3600.0)
    service_clock.measure_by_database()
    assert abs((service_clock.now() - true).total_seconds()) < 1.0


def test_a_clock_that_agrees_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: fixed)
    service_clock.learn(fixed.timestamp() + 0.5, took_s=0.0)
    assert service_clock.now() == fixed


def test_an_answer_that_took_long_is_better_than_none_and_worse_than_any_other() -> None:
    an_hour_ago = int(timezone.now().timestamp()) - 3600
    service_clock.learn(an_hour_ago, took_s=5.0)
    assert abs((timezone.now() - service_clock.now()).total_seconds() - 3600) < 5.0
    service_clock.learn(0.0, took_s=5.0)
    assert abs((timezone.now() - service_clock.now()).total_seconds() - 3600) < 5.0


@pytest.mark.django_db(transaction=True)
async def test_a_process_that_starts_without_redis_knows_the_time(monkeypatch, settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    true = timezone.now()
    off_by(monkeypatch, -3600.0)
    await Hub()._begin_clock()
    assert abs((service_clock.now() - true).total_seconds()) < 1.0
