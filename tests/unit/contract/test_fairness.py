"""The policy by itself, under random traffic: equal service within a bound, and nobody starves."""

from __future__ import annotations

import random
from collections import deque

import pytest

from chatproject.contract.fairness import AGEING, MINIMUM_SHARES, PRUNE_AT, About, FairUsers, LaneShares
from chatproject.contract.messages import GenerationRequest, SamplingParams, Turn
from chatproject.contract.names import LANES, Lane

MAX_COST = 500.0


class Service:
    """A lane served in ``num_places`` places: costs are expected at the claim, and known when a place is free again."""

    def __init__(self, seed: int, num_places: int, weights: dict[str, float]) -> None:
        self.rng = random.Random(seed)
        self.users = FairUsers()
        self.weights = weights
        self.num_places = num_places
        self.had: dict[str, float] = dict.fromkeys(weights, 0.0)  # really
        self._places: deque[tuple[str, float, float]] = deque()

    def claim(self, num_waiting: dict[str, int]) -> str:
        """Serve the next one, when the oldest of the places is free."""
        if len(self._places) >= self.num_places:
            user, expected, cost = self._places.popleft()
            self.users.charge(user, cost - expected, self.weights[user])
        user = self.users.first()
        assert user is not None
        num_waiting[user] -= 1
        expected, cost = MAX_COST / 2, self.rng.uniform(1, MAX_COST)
        self.users.take(user, expected, self.weights[user], still_waits=num_waiting[user] > 0)
        self.had[user] += cost / self.weights[user]
        self._places.append((user, expected, cost))
        return user


@pytest.mark.parametrize("seed", range(20))
def test_backlogged_users_never_part_by_more_than_the_bound(seed: int) -> None:
    """Sheng et al., theorem 4.8: twice what the places hold at once, and what ageing may put one turn forward."""
    rng = random.Random(seed)
    num_users, num_places = rng.randrange(2, 12), rng.choice((1, 4, 16))
    service = Service(seed, num_places, {f"user{index}": rng.choice((1.0, 1.0, 2.0)) for index in range(num_users)})
    waiting = dict.fromkeys(service.weights, 10**9)
    for user in waiting:
        service.users.join(user)
    bound = 2 * num_places * MAX_COST + AGEING * 2 * num_users * MAX_COST + MAX_COST
    for _ in range(1_000):
        service.claim(waiting)
        assert max(service.had.values()) - min(service.had.values()) <= bound


@pytest.mark.parametrize("seed", range(10))
def test_users_who_come_and_go_are_served_in_the_end(seed: int) -> None:
    """Random arrivals: a head waits for some turns of each of the others at the most."""
    rng = random.Random(seed)
    service = Service(seed, 4, {f"user{index}": 1.0 for index in range(12)})
    waiting = dict.fromkeys(service.weights, 0)
    waits: dict[str, int] = {}
    for _ in range(3_000):
        for user in rng.sample(list(waiting), rng.choice((0, 1, 1, 2))):
            waiting[user] += 1
            if waiting[user] == 1:
                service.users.join(user)
                waits[user] = 0
        if any(waiting.values()):
            served = service.claim(waiting)
            for user in waits:
                waits[user] += 1
            waits.pop(served) if not waiting[served] else waits.update({served: 0})
        assert max(waits.values(), default=0) < 120


def test_a_stream_of_newcomers_does_not_keep_out_who_had_much_before() -> None:
    users = FairUsers()
    users.join("alice")
    users.take("alice", 10_000.0, 1.0, still_waits=True)
    for claims in range(5_000):
        newcomer = f"guest{claims}"
        users.join(newcomer)
        chosen = users.first()
        assert chosen is not None
        if chosen == "alice":
            break
        users.take(chosen, 100.0, 1.0, still_waits=False)
    assert 100 < claims <= 10_000 / 100 / AGEING + 1


def test_a_user_of_weight_two_gets_twice_as_much() -> None:
    service = Service(3, 4, {"alice": 2.0, "bob": 1.0})
    waiting = dict.fromkeys(service.weights, 10**9)
    for user in waiting:
        service.users.join(user)
    turns = [service.claim(waiting) for _ in range(3_000)]
    assert turns.count("alice") / turns.count("bob") == pytest.approx(2.0, rel=0.05)


def test_who_was_away_is_neither_owed_for_it_nor_behind() -> None:
    users = FairUsers()
    users.join("alice")
    for _ in range(10):
        users.take("alice", 100.0, 1.0, still_waits=True)
    users.join("bob")
    assert users.served["bob"] == 900.0
    turns = []
    for _ in range(8):
        turns.append(users.first() or "")
        users.take(turns[-1], 100.0, 1.0, still_waits=True)
    assert turns.count("bob") == 4


def test_among_equals_the_first_to_come_is_the_first() -> None:
    users = FairUsers()
    names = [f"user{index}" for index in (5, 3, 9, 1)]
    for user in names:
        users.join(user)
    for user in names:
        assert users.first() == user
        users.take(user, 100.0, 1.0, still_waits=False)


def test_users_who_are_gone_are_forgotten() -> None:
    users = FairUsers()
    users.join("alice")
    for index in range(3 * PRUNE_AT):
        users.take("alice", 10.0, 1.0, still_waits=True)
        users.join(f"guest{index}")
        users.leave(f"guest{index}")
    assert len(users.served) <= PRUNE_AT + 2
    assert users.served["alice"] == 30.0 * PRUNE_AT


@pytest.mark.parametrize("seed", range(20))
def test_no_lane_that_waits_is_ever_behind_its_minimum_share(seed: int) -> None:
    rng = random.Random(seed)
    shares = LaneShares(MINIMUM_SHARES)
    served = dict.fromkeys(LANES, 0.0)
    heads = {lane: rng.uniform(1, MAX_COST) for lane in LANES}
    for _ in range(3_000):
        lane = (shares.owed(heads.items()) or LANES)[0]
        served[lane] += heads[lane]
        shares.account(LANES, {lane: heads[lane]})
        heads[lane] = rng.uniform(1, MAX_COST)
        total = sum(served.values())
        for other in LANES:
            # By its next head, and by those of the lanes whose debt is paid first.
            assert served[other] >= MINIMUM_SHARES[other] * total - 2 * MAX_COST
    assert served[Lane.VIP] / sum(served.values()) > 0.8


def test_a_lane_that_did_not_wait_is_owed_nothing() -> None:
    shares = LaneShares(MINIMUM_SHARES)
    shares.account((Lane.VIP, Lane.BATCH), {Lane.VIP: 10_000.0})
    assert shares.owed(((Lane.VIP, 1.0), (Lane.BATCH, 100.0))) == [Lane.BATCH]
    shares.account((Lane.VIP,), {Lane.VIP: 10.0})
    assert shares.owed(((Lane.VIP, 1.0), (Lane.BATCH, 100.0))) == []


def test_what_is_kept_of_a_request_reads_back() -> None:
    request = GenerationRequest(
        generation_id="g", model="demo", lane=Lane.VIP, user_id="a user with spaces", weight=0.25,
        turns=(Turn(role="user", text="four"),), params=SamplingParams(), accepted_ms=1, expires_ms=2, attempt=3,
    )  # fmt: skip
    about = About.of(request)
    assert About.parse(str(about)) == about
    assert (about.user_id, about.weight, about.attempt, about.expires_ms, about.num_bytes) == (
        "a user with spaces", 0.25, 3, 2, 4,
    )  # fmt: skip
