"""A generation that begins while the publisher waits for Redis: a defect that the random histories found."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.worker.test_publisher import Bench, eventually
from workers.engine.interfaces import Finish
from workers.generation import ActiveGeneration

pytestmark = pytest.mark.needs("redis")


@pytest.fixture
def bench(fresh_redis_url: str) -> Iterator[Bench]:
    made = Bench(fresh_redis_url)
    yield made
    made.publisher.stop(timeout_s=2)


def test_tokens_of_a_generation_that_begins_during_a_slow_write_are_kept(bench: Bench) -> None:
    is_writing, may_go_on = threading.Event(), threading.Event()
    store = bench.publisher._store
    append = store.append

    def slow(writes: Any, messages: Any) -> Any:
        is_writing.set()
        assert may_go_on.wait(30)
        return append(writes, messages)

    store.append = slow  # type: ignore[method-assign]
    first = bench.begin()
    first.channels.clear()  # nobody watches: sending would let the publisher's loop take its calls
    assert is_writing.wait(30)
    second = ActiveGeneration(bench.claim(), queue_ms=0, claimed_at=0.0)
    bench.publisher.begin(second)
    bench.step(second, 1, "one ")
    bench.step(second, 2, "two", Finish(reason="stop", prompt_tokens=1, completion_tokens=2))
    may_go_on.set()
    eventually(lambda: bench.log(second).end is not None, timeout_s=30)
    assert bench.log(second).text == "one two"
