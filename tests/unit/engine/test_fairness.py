"""Whose turn it is: users of a lane share it by weight, and no lane starves."""

from __future__ import annotations

import pytest

from tests.unit.engine.harness import World
from tests.unit.engine.traffic import jain


def _tokens_by_user(world: World) -> dict[str, float]:
    by_user: dict[str, float] = {}
    for id_, tokens in world.record.tokens.items():
        user = id_.split("-")[0]
        by_user[user] = by_user.get(user, 0) + len(tokens)
    return by_user


def test_a_user_who_sends_ten_times_as_much_gets_no_more_than_the_others() -> None:
    world = World(max_rows=4, num_blocks=64)
    for index in range(400):
        world.add(f"alice-{index}", [index, *range(20)], 16, user_id="alice")
    for index in range(40):
        for user in range(9):
            world.add(f"user{user}-{index}", [user, index, *range(20)], 16, user_id=f"user{user}")
    for _ in range(500):
        world.engine.step()
    first = _tokens_by_user(world)
    for _ in range(500):
        world.engine.step()
    served = [count - first.get(user, 0) for user, count in _tokens_by_user(world).items()]
    assert len(served) == 10
    assert jain(served) >= 0.99


def test_a_user_of_weight_two_gets_twice_as_much() -> None:
    world = World(max_rows=4, num_blocks=64)
    for index in range(300):
        world.add(f"alice-{index}", [1, index, *range(20)], 16, user_id="alice", weight=2.0)
        world.add(f"bob-{index}", [2, index, *range(20)], 16, user_id="bob")
    for _ in range(800):
        world.engine.step()
    served = _tokens_by_user(world)
    assert served["alice"] / served["bob"] == pytest.approx(2.0, rel=0.05)


def test_long_prompts_are_service_too() -> None:
    """Alice's requests cost 200 + 2 x 8, Bob's 8 + 2 x 8: Bob gets nine answers to one of hers."""
    world = World(max_rows=4, num_blocks=256)
    for index in range(300):
        world.add(f"alice-{index}", [1, index, *range(198)], 8, user_id="alice")
        world.add(f"bob-{index}", [2, index, *range(6)], 8, user_id="bob")
    while sum(id_.startswith("alice") for id_ in world.record.finish) < 20:
        world.engine.step()
    assert sum(id_.startswith("bob") for id_ in world.record.finish) == pytest.approx(20 * 9, rel=0.1)


def test_backlogged_users_never_part_by_more_than_the_bound() -> None:
    """Sheng et al., theorem 4.8: 2 max(input cost of one prompt, output cost of a full batch)."""
    world = World(max_rows=4, num_blocks=64)
    for index in range(200):
        world.add(f"alice-{index}", [1, index, *range(60)], 4, user_id="alice")
        world.add(f"bob-{index}", [2, index, *range(5)], 30, user_id="bob")
    bound = 2 * max(62, 2 * 64 * 16)
    (lane,) = world.engine._scheduler._lanes.values()
    for _ in range(400):
        world.engine.step()
        assert abs(lane.users.served["alice"] - lane.users.served["bob"]) <= bound


def test_a_lower_lane_gets_its_minimum_share_under_endless_load_from_above() -> None:
    world = World(max_rows=4, num_blocks=64, step_tokens=64)
    for index in range(400):
        world.add(f"vip-{index}", [1, index, *range(20)], 16, priority=0)
    for lane, priority in (("interactive", 3), ("background", 6), ("batch", 9)):
        for index in range(40):
            world.add(f"{lane}-{index}", [priority, index, *range(20)], 16, priority=priority)
    for _ in range(1_500):
        world.engine.step()
    served = _tokens_by_user(world)
    total = sum(served.values())
    assert world.engine.stats().waiting > 100
    assert served["vip"] / total > 0.7
    assert served["interactive"] / total > 0.09
    assert served["background"] / total > 0.045
    assert served["batch"] / total > 0.018


def test_between_equals_the_one_whose_prefix_is_cached_goes_first() -> None:
    world = World(max_rows=1)
    world.add("bob-turn1", range(40), 4, user_id="bob")
    world.add("alice-turn1", range(40), 4, user_id="alice", arrived_ms=1)
    world.run()
    users = world.engine._scheduler._lanes[3].users
    users.served, users.floor = dict.fromkeys(("alice", "bob", "charlie"), 100.0), 100.0
    for index, user in enumerate(("charlie", "bob", "alice")):
        world.add(
            f"{user}-turn2", [*range(40), 1] if user == "alice" else [7, *range(40)], 1, user_id=user, arrived_ms=index
        )
    world.run()
    assert list(world.record.finish)[2:] == ["alice-turn2", "charlie-turn2", "bob-turn2"]
