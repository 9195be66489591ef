"""What the others see of a worker: that it is there, that it left, and that a dead one is not counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import redis

from chatproject.contract import names
from chatproject.contract.messages import Lease, ModelStatus, WorkerStatus
from workers.leases import PRUNE_EVERY, Leases
from workers.publisher import Publisher
from workers.store import Store

pytestmark = pytest.mark.needs("redis")


class NoGenerations:
    """A publisher that runs nothing."""

    def leases(self) -> Sequence[tuple[str, Lease]]:
        return []


def never(error: BaseException) -> None:
    raise AssertionError(error)


def leases_of(slot: str, redis_url: str) -> Leases:
    status = WorkerStatus(
        slot=slot, boot="b", model="demo", state="ready", slots=4, running=1, steps=7, rows_per_step=1.5
    )  # fmt: skip

    def model_status() -> ModelStatus | None:
        return None

    return Leases(
        store=Store(redis_url), publisher=cast(Publisher, NoGenerations()), worker_status=lambda: status,
        model_status=model_status, on_fatal=never,
    )  # fmt: skip


@pytest.fixture
def server(fresh_redis_url: str) -> Any:
    with redis.Redis.from_url(fresh_redis_url, decode_responses=True) as client:
        yield client


def test_a_worker_is_on_the_list_while_it_renews(server: redis.Redis, fresh_redis_url: str) -> None:
    leases_of("w1", fresh_redis_url).renew()
    leases_of("w2", fresh_redis_url).renew()
    assert server.smembers(names.WORKERS_KEY) == {"w1", "w2"}
    assert WorkerStatus.from_json(str(server.get(names.worker_key("w1")))).running == 1
    # Nothing is left for ever when all workers are gone.
    assert all(0 < server.pttl(key) <= names.WORKERS_MS for key in (names.WORKERS_KEY, names.worker_key("w1")))


def test_a_worker_that_stops_leaves_the_list_at_once(server: redis.Redis, fresh_redis_url: str) -> None:
    leases = leases_of("w1", fresh_redis_url)
    leases.start()
    leases.stop()
    assert not server.exists(names.WORKERS_KEY, names.worker_key("w1"))


def test_slots_that_are_gone_are_taken_off_the_list(server: redis.Redis, fresh_redis_url: str) -> None:
    leases = leases_of("w1", fresh_redis_url)
    leases.renew()
    server.sadd(names.WORKERS_KEY, *(f"gone-{number}" for number in range(50)))
    for _ in range(PRUNE_EVERY):
        leases.renew()
    assert server.smembers(names.WORKERS_KEY) == {"w1"}
