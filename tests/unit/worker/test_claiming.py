"""What a worker takes when it claims, and whom it sends away to make room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from chatproject.contract import frames, names
from chatproject.contract.fairness import MAX_ATTEMPTS, About
from chatproject.contract.names import Lane
from tests.servers import free_port
from tests.unit.worker.fleet import Fleet, Worker
from workers.bootsteps import Doorman
from workers.claiming import claim_best
from workers.store import AWAY, Claim, Store

pytestmark = pytest.mark.needs("redis")


@pytest.fixture
def fleet(fresh_redis_url: str) -> Iterator[Fleet]:
    made = Fleet(fresh_redis_url, num_places=3)
    yield made
    made.server.close()


def ask(fleet: Fleet, user: str, lane: Lane = Lane.INTERACTIVE, **about: object) -> str:
    (id_,) = fleet.ask([(user, lane, 8, 400)])
    if about:
        changed = replace(About.of(fleet.requests[id_]), **about)
        fleet.server.hset(names.about_key("demo", lane), id_, str(changed))
        if "attempt" in about:
            request = replace(fleet.requests[id_], attempt=about["attempt"])
            fleet.server.set(names.request_key(id_), request.to_json())
    return id_


def claimed_by(worker: Worker, *, guest: str | None = None) -> str | None:
    claim: Claim | None = claim_best(worker, "demo", takes_last=not worker.holds_last_attempt, guest=guest)
    return claim.request.generation_id if claim is not None else None


def test_what_waited_too_long_ends_and_the_next_one_is_served(fleet: Fleet) -> None:
    worker = fleet.workers[0]
    late = [ask(fleet, "alice", expires_ms=1) for _ in range(12)]
    served = ask(fleet, "alice")
    assert claimed_by(worker) == served
    assert worker.expired == late
    log = frames.fold("g", fleet.server.xrange(names.log_key(late[0])))
    assert log.end is not None
    assert log.end.status == "expired"


def test_two_poisons_never_run_in_one_worker(fleet: Fleet) -> None:
    poisons = [ask(fleet, user, attempt=MAX_ATTEMPTS) for user in ("alice", "bob", "charlie")]
    others = [ask(fleet, "dora") for _ in range(3)]
    for worker in fleet.workers:
        worker.turn()
    held = [set(worker.jobs) for worker in fleet.workers]
    assert [len(ids & set(poisons)) for ids in held] == [1, 1]
    assert set().union(*held) >= set(others)


def test_a_full_worker_makes_room_for_a_higher_lane_and_the_room_is_for_it(fleet: Fleet) -> None:
    worker = fleet.workers[0]
    old, new = ask(fleet, "alice", Lane.BATCH), ask(fleet, "alice", Lane.BATCH)
    worker.turn()
    fleet.now_s += 1
    newest = ask(fleet, "bob", Lane.BATCH)
    worker.turn()
    assert set(worker.jobs) == {old, new, newest}
    ask(fleet, "charlie", Lane.BATCH)
    worker.turn()
    assert set(worker.jobs) == {old, new, newest}, "nobody gives way to an equal"
    vip = ask(fleet, "vip", Lane.VIP)
    worker.turn()
    assert set(worker.jobs) == {old, new, vip}
    assert fleet.server.zscore(names.wait_key("demo", Lane.BATCH), newest) is not None


def test_one_of_two_full_workers_makes_room_for_one_message(fleet: Fleet) -> None:
    for _ in range(6):
        ask(fleet, "alice", Lane.BATCH)
    for worker in fleet.workers:
        worker.turn()
    ask(fleet, "vip", Lane.VIP)
    for worker in fleet.workers:
        Doorman._make_room(worker, worker)  # type: ignore[arg-type]
    assert sorted(len(worker.jobs) for worker in fleet.workers) == [2, 3]


def test_who_runs_by_the_minimum_share_of_a_lane_is_not_sent_away(fleet: Fleet) -> None:
    worker = fleet.workers[0]
    ask(fleet, "vip", Lane.VIP)
    batch = ask(fleet, "alice", Lane.BATCH)
    fleet.server.hset(names.fair_key("demo"), "credit:batch", 1e6)
    worker.turn()
    assert worker.jobs[batch].claim.is_guaranteed
    for _ in range(4):
        ask(fleet, "vip", Lane.VIP)
    for _ in range(3):
        worker.turn()
    assert batch in worker.jobs


def test_a_request_that_is_not_understood_holds_up_nobody(fleet: Fleet) -> None:
    strange = ask(fleet, "alice")
    fleet.server.set(names.request_key(strange), '{"version": 99}')
    served = ask(fleet, "alice")
    assert claimed_by(fleet.workers[0]) == served


def test_a_request_of_a_newer_version_waits_for_a_worker_that_reads_it(fleet: Fleet) -> None:
    """A deploy: an old worker tries it once, keeps no lease, and leaves it to the new ones."""
    old, new = fleet.workers[:2]
    newer = ask(fleet, "alice")
    request = fleet.server.get(names.request_key(newer))
    place = fleet.server.zscore(names.wait_key("demo", Lane.INTERACTIVE), newer)
    fleet.server.set(names.request_key(newer), request[:-1] + ', "of_tomorrow": 1}')
    for _ in range(5):
        assert claimed_by(old) is None
    assert not fleet.server.exists(names.lease_key(newer))
    assert fleet.server.zscore(names.wait_key("demo", Lane.INTERACTIVE), newer) == place
    assert fleet.server.xlen(names.log_key(newer)) == 1, "it was tried once"
    fleet.server.set(names.request_key(newer), request)
    assert claimed_by(new) == newer


def test_redis_away_is_no_claim_and_no_error(fleet: Fleet) -> None:
    worker = fleet.workers[0]
    ask(fleet, "alice")
    worker.store = Store(f"redis://127.0.0.1:{free_port()}/0", timeout_s=0.1)
    assert claimed_by(worker) is None


def test_a_charge_follows_what_is_really_taken(fleet: Fleet) -> None:
    """Alice's answers run to 400 tokens and Bob's end after 4: by the charges she has had as much as it cost."""
    worker = fleet.workers[0]
    fleet.ask([("alice", Lane.INTERACTIVE, 8, 400), ("bob", Lane.INTERACTIVE, 8, 4)])
    served = names.served_key("demo", Lane.INTERACTIVE)
    for _ in range(60):
        worker.turn()
    worker.charges.flush(worker.store)
    cost = fleet.cost_by_user()
    assert cost["alice"] > 100
    # Bob's was settled; hers is at least what she has had, for more than that was expected.
    assert fleet.server.zscore(served, "bob") == pytest.approx(cost["bob"], abs=1)
    assert fleet.server.zscore(served, "alice") >= cost["alice"] - 1
    for _ in range(360):
        worker.turn()
    worker.charges.flush(worker.store)
    assert not worker.jobs
    assert fleet.server.zscore(served, "alice") == pytest.approx(fleet.cost_by_user()["alice"], abs=1)


def test_charges_stay_due_while_redis_is_away(fleet: Fleet) -> None:
    worker = fleet.workers[0]
    fleet.ask([("alice", Lane.INTERACTIVE, 8, 4)])
    for _ in range(10):
        worker.turn()
    with pytest.raises(AWAY):
        worker.charges.flush(Store(f"redis://127.0.0.1:{free_port()}/0", timeout_s=0.1))
    worker.charges.flush(worker.store)
    had = fleet.server.zscore(names.served_key("demo", Lane.INTERACTIVE), "alice")
    assert had == pytest.approx(fleet.cost_by_user()["alice"], abs=1)
