"""What runs next: decodes never wait for a prefill, the urgent come in at once, what is preempted loses nothing."""

from __future__ import annotations

from collections.abc import Sequence

from tests.unit.engine.harness import STEP_S, World, alone
from workers.engine.interfaces import Row, RowResult
from workers.fakes import FakeRunner


def _num_tokens(world: World, id_: str) -> int:
    return len(world.record.tokens.get(id_, ()))


def test_running_answers_get_a_token_every_step_while_a_long_prompt_is_read() -> None:
    world = World(step_tokens=32, num_blocks=100, context_tokens=1024)
    for id_ in ("a", "b", "c"):
        world.add(id_, [ord(id_), 1, 2], 200)
    world.engine.step()
    world.add("long", range(900), 4)
    while not _num_tokens(world, "long"):
        before = {id_: _num_tokens(world, id_) for id_ in "abc"}
        world.engine.step()
        assert all(_num_tokens(world, id_) == before[id_] + 1 for id_ in "abc")
    assert 900 / 32 < world.engine.steps < 900 / 16


def test_a_new_request_joins_the_running_batch_at_the_next_step() -> None:
    world = World()
    world.add("first", [1, 2, 3], 50)
    for _ in range(10):
        world.engine.step()
    world.add("second", [4, 5, 6], 50)
    world.engine.step()
    assert (_num_tokens(world, "first"), _num_tokens(world, "second")) == (11, 1)


def test_prefill_goes_on_when_decodes_fill_the_whole_budget() -> None:
    world = World(step_tokens=4, max_rows=8)
    for index in range(7):
        world.add(f"s{index}", [index, 1], 100)
    for _ in range(40):
        world.engine.step()
    world.add("late", range(100), 4)
    for _ in range(12):
        world.engine.step()
    assert "late" in world.record.finish


def test_a_vip_takes_the_place_of_the_newest_of_the_lowest_lane() -> None:
    world = World(max_rows=3)
    for id_, priority in (("batch-old", 9), ("batch-new", 9), ("interactive", 3)):
        world.add(id_, [ord(id_[-1]), priority], 60, priority=priority)
    for _ in range(5):
        world.engine.step()
    world.add("vip", [1, 2, 3], 8, priority=0)
    world.engine.step()
    assert _num_tokens(world, "vip") == 1
    assert [_num_tokens(world, id_) for id_ in ("batch-old", "batch-new", "interactive")] == [6, 5, 6]
    world.run()
    assert world.record.tokens["batch-new"] == list(alone((ord("w"), 9), 60))


def test_vips_first_token_under_tenfold_overload_comes_as_fast_as_when_idle() -> None:
    def first_token_s(load: int) -> float:
        world = World(max_rows=8, num_blocks=128, step_tokens=64, context_tokens=512)
        for index in range(load):
            world.add(f"load-{index}", [index, *range(100)], 100, user_id=f"user{index % 7}", priority=6)
        for _ in range(60):
            world.engine.step()
        world.add("vip", range(50, 250), 8, priority=0, user_id="vip")
        began_s = world.clock.now_s
        while not _num_tokens(world, "vip"):
            world.engine.step()
        return world.clock.now_s - began_s

    assert first_token_s(80) <= 1.5 * first_token_s(0)


def test_when_blocks_run_out_the_newest_steps_back_and_still_ends_right() -> None:
    world = World(num_blocks=6, max_rows=3)
    for index in range(3):
        world.add(f"s{index}", [index, 1, 2], 60)
    world.run()
    assert world.engine.stats().preemptions > 0
    for index in range(3):
        assert world.record.tokens[f"s{index}"] == list(alone((index, 1, 2), 60))
    ends = list(world.record.finish)
    assert ends[0] == "s0", "the oldest is never the victim"


def test_a_second_turn_computes_only_what_is_new() -> None:
    world = World(num_blocks=64)
    world.add("turn1", range(100), 30, user_id="alice")
    world.run()
    history = [*range(100), *world.record.tokens["turn1"]]
    steps = world.engine.steps
    world.add("turn2", [*history, 7, 8, 9], 5, user_id="alice")
    world.add("bobs", [*history, 7, 8, 9], 5, user_id="bob")
    world.run()
    # The last token of turn1 was never computed; of its 129 computed ones, 8 blocks are full.
    assert world.record.finish["turn2"].cached_tokens == 128
    assert world.record.finish["bobs"].cached_tokens == 0
    assert world.record.tokens["turn2"] == world.record.tokens["bobs"]
    assert world.engine.steps - steps < 10


def test_a_full_batch_takes_the_time_of_one() -> None:
    world = World(max_rows=8)
    for index in range(8):
        world.add(f"s{index}", [index], 20)
    world.run()
    assert world.clock.now_s < 22 * STEP_S
    assert world.engine.stats().decode_rows / world.engine.stats().decode_steps == 8


def test_a_vip_does_not_wait_for_the_long_prompt_of_a_lower_lane() -> None:
    world = World(step_tokens=32, num_blocks=100, context_tokens=1024)
    world.add("long", range(900), 4, priority=6)
    world.engine.step()
    world.add("vip", [1, 2, 3], 4, priority=0)
    world.engine.step()
    assert _num_tokens(world, "vip") == 1


def test_a_token_is_asked_for_only_when_the_whole_prompt_is_computed() -> None:
    asked: list[int] = []

    class Watched(FakeRunner):
        def step(self, rows: Sequence[Row]) -> Sequence[RowResult]:
            asked.extend(row.start + len(row.tokens) for row in rows if row.sampling is not None)
            return super().step(rows)

    world = World(runner=Watched(step_ms=0), step_tokens=16)
    world.add("a", range(40), 3)
    world.run()
    assert asked == [40, 41, 42]
