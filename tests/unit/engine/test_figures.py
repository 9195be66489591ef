"""Where the engine's time went, and what a request is told of it: on a virtual clock, so that sums are exact."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.unit.engine.harness import STEP_S, World
from workers.engine.interfaces import StepOutput

LISTEN_S = STEP_S / 500  # the publisher takes its time too


def _prompt(rng: random.Random) -> list[int]:
    return [rng.randrange(10_000, 20_000) for _ in range(rng.randrange(1, 60))]


def test_what_requests_are_charged_and_idle_and_load_is_the_wall_time() -> None:
    """Charged means by their end, or until they were dropped; the rest is less than 0.5 %."""
    rng = random.Random(11)
    world = World(num_blocks=12, max_rows=4, step_tokens=20)
    load_s = 3.0
    world.clock.sleep(load_s)
    world.engine._mark_s = world.clock.now_s  # the engine is made when the model is loaded
    told = world.record.on_step

    def listen(outputs: Sequence[StepOutput]) -> None:
        world.clock.sleep(LISTEN_S)
        told(outputs)

    world.record.on_step = listen  # type: ignore[method-assign]
    for index in range(200):
        world.add(f"s{index}", _prompt(rng), rng.randrange(1, 30), user_id=rng.choice("ab"))
        for _ in range(rng.randrange(25)):
            if not world.engine.step():
                world.engine.rest(lambda: world.clock.sleep(0.3))
            if rng.random() < 0.05:
                world.engine.cancel(f"s{rng.randrange(index + 1)}")
            if rng.random() < 0.05:
                dropped = f"s{rng.randrange(index + 1)}"
                if dropped not in world.record.finish:
                    world.record.dropped.add(dropped)
                    world.engine.drop(dropped)
    world.run()
    stats = world.engine.stats()
    shared_s = sum(finish.engine_s for finish in world.record.finish.values())
    assert stats.dropped_s > 0
    assert stats.idle_s > 1
    assert load_s + shared_s + stats.dropped_s + stats.idle_s == pytest.approx(world.clock.now_s, rel=0.005)
    # The same as the worker says it, which asks nobody what they were charged.
    assert load_s + stats.busy_s + stats.idle_s == pytest.approx(world.clock.now_s, rel=0.005)


def test_idle_time_is_told_while_it_lasts() -> None:
    world = World()
    seen: list[float] = []

    def wait() -> None:
        for _ in range(3):
            world.clock.sleep(10.0)
            seen.append(world.engine.stats().idle_s)

    world.engine.rest(wait)
    assert seen == [10.0, 20.0, 30.0]
    assert world.engine.stats().idle_s == 30.0


def test_a_request_is_told_with_how_many_it_was_batched_and_how_fast_it_was() -> None:
    world = World()
    for id_ in "abcd":
        world.add(id_, list(range(10_000, 10_020)), 33, user_id=id_)
    world.run()
    for id_ in "abcd":
        finish = world.record.finish[id_]
        assert finish.mean_rows == pytest.approx(4, abs=0.5)
        assert finish.decode_tokens == 32
        assert finish.decode_tokens / finish.decode_s == pytest.approx(1 / STEP_S, rel=0.1)
        assert finish.kv_blocks == 4  # 20 + 32 tokens in blocks of 16
    world.add("alone", [10_000], 33)
    world.run()
    assert world.record.finish["alone"].mean_rows == 1
    assert world.record.finish["alone"].cached_tokens == 0


def test_a_resumed_request_is_told_the_speed_of_its_own_run() -> None:
    world = World()
    world.add("again", [10_000], 33, prefix=[1_000] * 20)
    world.run()
    finish = world.record.finish["again"]
    assert finish.completion_tokens == 33
    assert finish.decode_tokens == 12  # 13 of this run, and the first came with the prefill
