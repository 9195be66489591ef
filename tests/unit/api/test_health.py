"""Probes tell a live process from a ready one, name what is away, and answer in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from channels.layers import channel_layers
from django.test import AsyncClient

from chatproject import health, redis_client
from chatproject.contract import broker
from tests.servers import free_port

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def use_redis(settings: Any) -> Iterator[Callable[[str], None]]:
    def use(url: str) -> None:
        settings.REDIS_URL = url
        settings.CHANNEL_LAYERS = {"default": broker.channel_layer(url)}
        redis_client.client.cache_clear()
        channel_layers.backends.clear()

    yield use
    redis_client.client.cache_clear()
    channel_layers.backends.clear()


async def get(path: str, **headers: str) -> Any:
    return await AsyncClient().get(path, headers=headers)


@pytest.mark.needs("redis")
async def test_ready_when_every_dependency_answers(use_redis: Callable[[str], None], redis_url: str) -> None:
    use_redis(redis_url)
    for _ in range(3):
        answer = await get("/readyz")
        assert answer.status_code == 200, answer.content
        assert {part["status"] for part in answer.json()["components"].values()} == {"up"}


async def test_not_ready_names_what_is_away_and_livez_stays(use_redis: Callable[[str], None]) -> None:
    use_redis(f"redis://127.0.0.1:{free_port()}/0")
    answer = await get("/readyz")
    assert answer.status_code == 503
    components = answer.json()["components"]
    assert {name: part["status"] for name, part in components.items()} == {
        "database": "up", "redis": "down", "channel_layer": "down"
    }  # fmt: skip
    assert "127.0.0.1" not in answer.content.decode()
    assert (await get("/livez")).status_code == 200


async def test_a_dependency_that_hangs_costs_two_seconds_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release, starts = threading.Event(), []

    def hang() -> None:
        starts.append(1)
        release.wait(20)

    monkeypatch.setattr(health, "_ask_database", hang)
    monkeypatch.setattr(health, "PROBE_S", 0.1)
    start = time.monotonic()
    for _ in range(5):
        assert not (await health.check())["database"].is_up
    release.set()
    assert time.monotonic() - start < 3
    assert len(starts) == 1


@pytest.mark.needs("redis")
async def test_metrics_are_for_this_machine_or_the_token(
    use_redis: Callable[[str], None], redis_url: str, settings: Any
) -> None:
    use_redis(redis_url)
    settings.METRICS_TOKEN = "abc"
    page = await get("/metrics")
    assert page.status_code == 200
    assert b"chat_redis_up 1.0" in page.content
    assert (await get("/metrics", **{"x-forwarded-for": "203.0.113.9"})).status_code == 403
    assert (
        await get("/metrics", **{"x-forwarded-for": "203.0.113.9", "authorization": "Bearer ab"})
    ).status_code == 403
    ok = await get("/metrics", **{"x-forwarded-for": "203.0.113.9", "authorization": "Bearer abc"})
    assert ok.status_code == 200
