"""Claims against a real Redis: the order is the policy's, its numbers are shared by all workers, and none is wrong."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from chatproject.contract import frames, names, scripts
from chatproject.contract.errors import Failure
from chatproject.contract.fairness import (
    MAX_ATTEMPTS,
    MINIMUM_SHARES,
    About,
    Costs,
    FairUsers,
    LaneShares,
    WaitingLane,
    candidates,
    claim_order,
)
from chatproject.contract.messages import GenerationRequest, SamplingParams, Turn
from chatproject.contract.names import LANES, Lane
from workers.errors import Expired
from workers.store import Claim, Store

pytestmark = pytest.mark.needs("redis")
FAR_MS = 10**14
COST = 100.0
COSTS = Costs(per_byte=0.0, per_lane=dict.fromkeys(LANES, COST))


class Queue:
    """The web's and a worker's side of one Redis."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.server = redis.Redis.from_url(url, decode_responses=True)
        self.store = Store(url)
        self._enqueue = self.server.register_script(scripts.ENQUEUE.source)
        self.now_ms = 0

    def add(self, user: str, lane: Lane = Lane.INTERACTIVE, **fields: object) -> GenerationRequest:
        self.now_ms += 1
        defaults: dict[str, object] = {"accepted_ms": self.now_ms, "expires_ms": FAR_MS, "generation_id": _id()}
        defaults["turns"] = (Turn(role="user", text="hi"),)
        request = GenerationRequest(
            model="demo", lane=lane, user_id=user, params=SamplingParams(), **(defaults | fields),  # type: ignore[arg-type]
        )  # fmt: skip
        assert self.enqueue(request) == "waiting"
        return request

    def enqueue(self, request: GenerationRequest, *, with_about: bool = True) -> str:
        id_ = request.generation_id
        keys = [
            names.request_key(id_), names.wait_key("demo", request.lane), names.lease_key(id_), names.log_key(id_)
        ]  # fmt: skip
        args = [id_, request.to_json(), request.accepted_ms, 60_000]
        answer: str = self._enqueue(keys=keys, args=args + ([str(About.of(request))] if with_about else []))
        return answer

    def claim(self, *, cost: float = COST, takes_last: bool = True, store: Store | None = None) -> Claim | None:
        """Claim as a worker does: look, and take the best that is to be had."""
        store = store or self.store
        while True:
            lanes = store.look("demo", num_users=4, num_ids=2)
            found = candidates(lanes, lambda lane, about: cost, takes_last=takes_last)
            for candidate in found:
                claim = store.claim_fairly(
                    candidate, model="demo", slot="w", boot="b", cost=cost, takes_last=takes_last
                )
                if claim is not None:
                    return claim
            if not found:
                return None

    def claimed(self, **options: object) -> Claim:
        claim = self.claim(**options)  # type: ignore[arg-type]
        assert claim is not None
        return claim

    def claim_sole(self, costs: Costs = COSTS, *, takes_last: bool = True) -> Claim | list[WaitingLane]:
        return self.store.claim_sole(
            "demo", costs, slot="w", boot="b", takes_last=takes_last, num_users=4, num_ids=2
        )  # fmt: skip

    def claimed_alone(self, costs: Costs) -> Claim:
        claim = self.claim_sole(costs)
        assert isinstance(claim, Claim)
        return claim

    def fair_numbers(self) -> list[object]:
        """Return all that the policy keeps."""
        fair: object = self.server.hgetall(names.fair_key("demo"))
        served = [self.server.zrange(names.served_key("demo", lane), 0, -1, withscores=True) for lane in LANES]
        return [fair, *served]

    def check(self) -> None:
        """Hold every line to the set of those who wait."""
        for lane in LANES:
            waiting = self.server.zrange(names.wait_key("demo", lane), 0, -1, withscores=True)
            about = self.server.hgetall(names.about_key("demo", lane))
            assert set(about) == {id_ for id_, _ in waiting}
            users = {About.parse(text).user_id for text in about.values()}
            assert set(self.server.zrange(names.turns_key("demo", lane), 0, -1)) == users
            lines = [
                row
                for user in users
                for row in self.server.zrange(names.line_key("demo", lane, user), 0, -1, withscores=True)
            ]
            assert sorted(lines) == sorted(waiting)


def _id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def queue(fresh_redis_url: str) -> Iterator[Queue]:
    made = Queue(fresh_redis_url)
    yield made
    made.server.close()


def test_redis_keeps_the_numbers_of_the_policy(queue: Queue) -> None:
    """Random traffic through the scripts and through the classes they mirror: the same turns, floors and credits."""
    rng = random.Random(3)
    lanes = {lane: FairUsers() for lane in LANES}
    shares = LaneShares(MINIMUM_SHARES)
    lines: dict[tuple[Lane, str], list[GenerationRequest]] = {}
    claims: list[Claim] = []
    weights = {"alice": 1.0, "bob": 2.0, "charlie": 0.5, "dora": 1.0}

    def waiting() -> list[Lane]:
        return [lane for lane in LANES if any(line and key[0] is lane for key, line in lines.items())]

    for _ in range(250):
        action = rng.random()
        if action < 0.5:
            lane, user = rng.choice(LANES), rng.choice(list(weights))
            lanes[lane].join(user)
            lines.setdefault((lane, user), []).append(queue.add(user, lane, weight=weights[user]))
        elif action < 0.8:
            cost = float(rng.randrange(10, 400))
            claim = queue.claim(cost=cost)
            if claim is None:
                assert not waiting()
                continue
            lane, user = claim.request.lane, claim.request.user_id
            ranked = waiting()
            assert lane is (shares.owed((each, cost) for each in ranked) or ranked)[0]
            assert user == lanes[lane].first()
            assert lines[lane, user].pop(0) == claim.request
            if not lines[lane, user]:
                lanes[lane].leave(user)
            lanes[lane].take(user, cost, weights[user], still_waits=bool(lines[lane, user]))
            shares.account(waiting(), {lane: cost})
            claims.append(claim)
        elif claims:
            claim = claims.pop(rng.randrange(len(claims)))
            lane, user = claim.request.lane, claim.request.user_id
            cost = float(rng.randrange(-100, 300))
            queue.store.charge([("demo", lane, user, weights[user], cost)])
            lanes[lane].charge(user, cost, weights[user])
        looked = {lane.lane: lane for lane in queue.store.look("demo", num_users=9, num_ids=1)}
        for lane, users in lanes.items():
            turns = {user.user_id: user.turn for user in looked[lane].users}
            assert turns == pytest.approx(users.turns)
            assert {user.user_id: user.served for user in looked[lane].users} == pytest.approx(
                {user: users.served[user] for user in users.turns}
            )
            assert looked[lane].credit == pytest.approx(shares.credit(lane), abs=1e-6)
    queue.check()
    assert len(waiting()) > 1


def test_one_who_waits_alone_is_claimed_in_one_call_on_the_same_terms(queue: Queue) -> None:
    """The same numbers as by a look and a claim, whatever users and lanes have had before."""
    chance = random.Random(4)
    costs = Costs(per_byte=0.25, per_lane={lane: 10.0 + place for place, lane in enumerate(LANES)})
    told: list[tuple[object, ...]] = []
    for is_sole in (True, False):
        queue.server.flushdb()
        queue.now_ms = 0
        chance.seed(4)
        for number in range(40):
            lane, text = chance.choice(LANES), "x" * chance.randrange(400)
            asked = queue.add(
                f"u{chance.randrange(4)}", lane, weight=chance.choice((1.0, 2.0)),
                turns=(Turn(role="user", text=text),), generation_id=f"{number:032}",
            )  # fmt: skip
            cost = costs.of(lane, About.of(asked))
            claim = queue.claimed_alone(costs) if is_sole else queue.claimed(cost=cost)
            told.append((claim.request, claim.score, claim.charged, claim.is_guaranteed, claim.is_cancelled))
            queue.store.charge([("demo", lane, asked.user_id, asked.weight, 3.0)])
            queue.check()
        told.append(tuple(queue.fair_numbers()))
    assert told[: len(told) // 2] == told[len(told) // 2 :]


def test_of_two_who_wait_none_is_claimed_but_looked_at(queue: Queue) -> None:
    for lanes in ((Lane.VIP, Lane.BATCH), (Lane.INTERACTIVE, Lane.INTERACTIVE)):
        queue.server.flushdb()
        asked = [queue.add(f"u{number}", lane) for number, lane in enumerate(lanes)]
        looked = queue.store.look("demo", num_users=4, num_ids=2)
        assert queue.claim_sole() == looked
        assert {each.generation_id for each in asked} == {
            id_ for lane in LANES for id_ in queue.server.zrange(names.wait_key("demo", lane), 0, -1)
        }
        queue.check()


def test_nobody_waits_or_the_only_one_may_not_be_claimed(queue: Queue) -> None:
    empty = queue.claim_sole()
    assert isinstance(empty, list)
    assert not any(lane.users for lane in empty)
    last = queue.add("u", attempt=MAX_ATTEMPTS)
    refused = queue.claim_sole(takes_last=False)
    assert isinstance(refused, list)
    assert [user.first[0][0] for lane in refused for user in lane.users] == [last.generation_id]
    claim = queue.claim_sole()
    assert isinstance(claim, Claim)
    assert claim.request == last
    late = queue.add("u", expires_ms=1)
    with pytest.raises(Expired) as expired:
        queue.claim_sole()
    assert expired.value.generation_id == late.generation_id
    queue.check()


def test_two_workers_serve_a_flood_no_faster_than_the_others(queue: Queue) -> None:
    """Two claimers in threads of their own, each with its own connections, over one set of counters."""
    for _ in range(200):
        queue.add("flood")
    for _ in range(40):
        for user in range(4):
            queue.add(f"user{user}")
    stores = [Store(queue.url), Store(queue.url)]
    served: list[tuple[str, str]] = []
    together = threading.Barrier(2)

    def work(store: Store) -> None:
        together.wait(10)
        for _ in range(50):
            claim = queue.claim(store=store)
            assert claim is not None
            served.append((claim.request.generation_id, claim.request.user_id))

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(served) == len({id_ for id_, _ in served}) == 100
    counts = Counter(user for _, user in served)
    assert len(counts) == 5
    # A worker goes by a look that the other's claim may have outdated: by one claim each.
    assert all(18 <= count <= 22 for count in counts.values()), counts
    queue.check()


def test_who_comes_back_is_neither_owed_nor_behind(queue: Queue) -> None:
    for _ in range(50):
        queue.add("alice")
    for _ in range(30):
        queue.claimed()
    for _ in range(10):
        queue.add("bob")
    users = [queue.claimed().request.user_id for _ in range(10)]
    assert 4 <= users.count("bob") <= 6


def test_what_was_not_taken_is_given_back(queue: Queue) -> None:
    """A claim was thought to cost 3 x 100 and took 100: the next turns alternate as if it had been known."""
    for user in ("alice", "bob") * 5:
        queue.add(user)
    assert queue.claimed(cost=3 * COST).request.user_id == "alice"
    queue.store.charge([("demo", Lane.INTERACTIVE, "alice", 1.0, -2 * COST)])
    assert [queue.claimed().request.user_id for _ in range(4)] == ["bob", "alice", "bob", "alice"]


def test_places_told_are_the_order_of_claims(queue: Queue) -> None:
    rng = random.Random(5)
    for _ in range(60):
        user = rng.choice(("alice", "bob", "charlie"))
        queue.add(user, rng.choice(LANES), weight=2.0 if user == "bob" else 1.0)
    for _ in range(10):
        queue.claimed()
    told = list(claim_order(queue.store.look("demo", num_users=9, num_ids=1), COST, limit=500))
    assert len(told) == 50
    for lane, user in told:
        request = queue.claimed().request
        assert (request.lane, request.user_id) == (lane, user)


def test_one_whose_deadline_passed_is_not_started_but_ends(queue: Queue) -> None:
    late = queue.add("alice", expires_ms=1)
    with pytest.raises(Expired):
        queue.claim()
    entries = queue.server.xrange(names.log_key(late.generation_id))
    assert [fields["k"] for _, fields in entries] == ["started", "end"]
    log = frames.fold("g", entries)
    assert log.end is not None
    assert (log.end.status, log.end.code) == ("expired", Failure.EXPIRED)
    assert queue.claim() is None
    queue.check()


def test_one_that_has_started_before_goes_on_after_its_deadline(queue: Queue) -> None:
    queue.add("alice")
    held = queue.claimed()
    assert queue.store.hand_back(held) == "waiting"
    late = About(user_id="alice", expires_ms=1)
    queue.server.hset(names.about_key("demo", "interactive"), held.request.generation_id, str(late))
    assert queue.claimed().request == held.request


def test_a_worker_takes_no_second_one_that_is_on_its_last_attempt(queue: Queue) -> None:
    poison = queue.add("alice", attempt=MAX_ATTEMPTS)
    other = queue.add("bob", attempt=MAX_ATTEMPTS - 1)
    second = queue.add("alice")
    assert queue.claimed(takes_last=False).request == other
    assert queue.claimed(takes_last=False).request == second
    assert queue.claim(takes_last=False) is None
    (candidate,) = candidates(queue.store.look("demo", num_users=4, num_ids=2), lambda lane, about: COST)
    refused = queue.store.claim_fairly(candidate, model="demo", slot="w", boot="b", cost=1.0, takes_last=False)
    assert refused is None
    assert queue.claimed().request == poison


def test_lines_follow_whatever_takes_one_out_of_the_queue(queue: Queue) -> None:
    server = queue.server
    asked = [queue.add(user) for user in ("alice", "alice", "bob", "bob", "bob")]
    wait = names.wait_key("demo", "interactive")

    def run(script: scripts.Script, request: GenerationRequest, *args: object) -> None:
        by_name = {
            "wait": wait, "req": names.request_key(request.generation_id),
            "gen": names.log_key(request.generation_id), "lease": names.lease_key(request.generation_id),
            "cancel": names.cancel_key(request.generation_id), "watch": names.watch_key(request.generation_id),
        }  # fmt: skip
        server.register_script(script.source)(keys=[by_name[key] for key in script.keys], args=args)
        queue.check()

    run(scripts.CANCEL, asked[0], asked[0].generation_id, 60_000, "status", "cancelled")
    run(scripts.END, asked[2], asked[2].generation_id, 60_000, "status", "expired")
    run(scripts.STORED, asked[3], asked[3].generation_id, 60_000, "status", "done")
    held = queue.claimed()
    queue.check()
    assert queue.store.hand_back(held) == "waiting"
    queue.check()
    assert {queue.claimed().request.generation_id for _ in range(2)} == {
        asked[1].generation_id, asked[4].generation_id,
    }  # fmt: skip
    queue.check()
    left = {key for key in server.keys("*") if server.pttl(key) < 0}
    assert not left


def test_an_older_version_beside_us_is_served_too(queue: Queue) -> None:
    """One that only knew the waiting set: what it puts there is found, what it takes out holds up nobody."""
    server, wait = queue.server, names.wait_key("demo", "interactive")
    known = [queue.add("alice") for _ in range(3)]
    for user in ("bob", "charlie"):
        old = queue.add(user)
        server.zrem(wait, old.generation_id)  # as its claim did
    put = [queue.add("dora"), queue.add("dora")]
    for request in put:  # as its enqueue did
        server.hdel(names.about_key("demo", "interactive"), request.generation_id)
    server.delete(names.line_key("demo", "interactive", "dora"))
    server.zrem(names.turns_key("demo", "interactive"), "dora")
    served = {queue.claimed().request.generation_id for _ in range(5)}
    assert served == {request.generation_id for request in (*known, *put)}
    queue.check()
    again = queue.add("alice")
    server.delete(names.wait_key("demo", "interactive"))
    assert queue.enqueue(again, with_about=False) == "waiting"
    queue.check()
    assert queue.claimed().request == again


def test_a_claim_costs_the_same_with_ten_thousand_waiting(queue: Queue) -> None:
    def commands_of_a_claim() -> int:
        before = queue.server.info("commandstats")
        queue.claimed()
        after = queue.server.info("commandstats")
        names_ = {name for name in after if name != "cmdstat_info"}
        return sum(after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in names_)

    for lane in LANES:
        for index in range(30):
            queue.add(f"user{index % 10}", lane)
    queue.claimed()
    few = commands_of_a_claim()
    pipe = queue.server.pipeline(transaction=False)
    enqueue = queue.server.register_script(scripts.ENQUEUE.source)
    for index in range(10_000):
        id_ = _id()
        keys = [names.request_key(id_), names.wait_key("demo", "batch"), names.lease_key(id_), names.log_key(id_)]
        enqueue(keys=keys, args=[id_, "{}", index, 60_000, f"1 1 0 2 user{index % 3000}"], client=pipe)
    pipe.execute()
    assert queue.server.zcard(names.wait_key("demo", "batch")) > 10_000
    assert commands_of_a_claim() <= few + 20
