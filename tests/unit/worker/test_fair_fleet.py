"""What users get of a fleet that is asked for ten times what it can do. Virtual clock, real Redis, two workers."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest

from chatproject.contract.names import Lane
from tests.unit.worker.fleet import STEP_S, Fleet

pytestmark = pytest.mark.needs("redis")
USERS = [f"user{index}" for index in range(10)]


def jain(values: Collection[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def shares_with_one_flooding(url: str, *, is_fair: bool, num_steps: int = 600) -> tuple[float, float]:
    """Return Jain's index of the service of ten users over the second half, and the flooder's share of it."""
    rng = random.Random(1)
    fleet = Fleet(url, is_fair=is_fair)
    asked = [(user, Lane.INTERACTIVE, rng.randrange(8, 40), rng.randrange(4, 20)) for user in USERS for _ in range(60)]
    asked += [("user0", Lane.INTERACTIVE, rng.randrange(8, 40), rng.randrange(4, 20)) for _ in range(9 * 60)]
    rng.shuffle(asked)
    fleet.ask(asked)
    for _ in range(num_steps // 2):
        fleet.step()
    first = fleet.cost_by_user()
    for _ in range(num_steps // 2):
        fleet.step()
    cost = fleet.cost_by_user()
    for user in USERS:
        waiting = fleet.server.zcard(f"line:demo:interactive:{user}")
        assert waiting > 0, f"{user} is not backlogged any more"
    second = {user: cost.get(user, 0.0) - first.get(user, 0.0) for user in USERS}
    return jain(second.values()), second["user0"] / sum(second.values())


def test_ten_users_have_the_same_though_one_sends_ten_times_as_much(fresh_redis_url: str) -> None:
    fair, _ = shares_with_one_flooding(fresh_redis_url, is_fair=True)
    fifo, flood = shares_with_one_flooding(fresh_redis_url, is_fair=False)
    print(f"Jain index {fair:.4f}, FIFO {fifo:.4f}")
    assert fair >= 0.99
    assert fifo < 0.5
    assert flood > 0.4


def overload(url: str, *, is_fair: bool, load: int, seconds: float = 16.0) -> tuple[Fleet, list[str]]:
    """Run with ``load`` requests of lower lanes waiting, and a VIP now and then; return the VIPs' ids too."""
    rng, vip_rng = random.Random(2), random.Random(3)
    fleet = Fleet(url, is_fair=is_fair)
    lanes = rng.choices((Lane.INTERACTIVE, Lane.BACKGROUND, Lane.BATCH), (6, 3, 1), k=load)
    fleet.ask([(rng.choice(USERS), lane, 100, 50) for lane in lanes])
    vips: list[str] = []
    next_s = 1.0
    while fleet.now_s < seconds:
        if fleet.now_s >= next_s and fleet.now_s < seconds - 2:
            vips += fleet.ask([("vip", Lane.VIP, 200, 8)])
            next_s += 0.5 + vip_rng.random()
        fleet.step()
    return fleet, vips


def test_a_vips_first_token_comes_as_soon_under_tenfold_overload(fresh_redis_url: str) -> None:
    # Eight places serve about 8 of these a second: 1,300 are ten times what 16 s can do.
    idle, vips = overload(fresh_redis_url, is_fair=True, load=0)
    idle_s = sorted(idle.waits_s(vips))
    busy, vips = overload(fresh_redis_url, is_fair=True, load=1_300)
    busy_s = sorted(busy.waits_s(vips))
    assert len(busy_s) == len(idle_s) > 10
    ratio = (sum(busy_s) / len(busy_s)) / (sum(idle_s) / len(idle_s))
    fifo, _ = overload(fresh_redis_url, is_fair=False, load=1_300)
    throughput = busy.num_tokens / fifo.num_tokens
    print(
        f"VIP first token: mean {ratio:.2f} x idle, worst {busy_s[-1]:.2f} s against {idle_s[-1]:.2f} s; "
        f"throughput {throughput:.3f} x FIFO"
    )
    assert ratio <= 1.5
    assert busy_s[-1] <= 1.5 * idle_s[-1] + STEP_S
    assert throughput >= 0.98


def test_every_lane_has_its_minimum_under_endless_load_from_above(fresh_redis_url: str) -> None:
    fleet = Fleet(fresh_redis_url)
    rng = random.Random(4)

    def some(lane: Lane, count: int) -> list[tuple[str, Lane, int, int]]:
        return [(rng.choice(USERS), lane, rng.randrange(8, 40), rng.randrange(4, 20)) for _ in range(count)]

    ids = {lane: fleet.ask(some(lane, 700 if lane is Lane.VIP else 100)) for lane in Lane}
    for _ in range(600):
        fleet.step()
    served = {lane: sum(len(fleet.tokens.get(id_, ())) for id_ in ids[lane]) for lane in Lane}
    assert fleet.head(Lane.VIP), "the load from above has ended"
    total = sum(served.values())
    assert served[Lane.INTERACTIVE] / total > 0.08
    assert served[Lane.BACKGROUND] / total > 0.035
    assert served[Lane.BATCH] / total > 0.012
    assert served[Lane.VIP] / total > 0.75
