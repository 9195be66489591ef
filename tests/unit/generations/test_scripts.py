"""The atomic steps against a real Redis: who may do what, and what is refused."""

from __future__ import annotations

import dataclasses
import uuid

import pytest
import redis

from chatproject.contract import fairness, frames, names
from chatproject.contract.errors import Failure, FinishReason
from chatproject.contract.fairness import About, candidates
from chatproject.contract.frames import End, Frame
from chatproject.contract.messages import GenerationRequest, SamplingParams, Turn
from chatproject.contract.names import Lane
from chatproject.generations import scripts, sweeper
from chatproject.generations.tickets import Ticket
from workers.store import Claim, Store

pytestmark = pytest.mark.needs("redis")
CANCELLED = End(status="cancelled", reason=FinishReason.CANCELLED)
DONE = End(status="done", reason=FinishReason.STOP)


def request(accepted_ms: int = 1, lane: Lane = Lane.INTERACTIVE) -> GenerationRequest:
    return GenerationRequest(
        generation_id=str(uuid.uuid4()), model="demo", lane=lane, user_id="u",
        turns=(Turn(role="user", text="hi"),), params=SamplingParams(), accepted_ms=accepted_ms, expires_ms=9,
    )  # fmt: skip


def claim(store: Store, asked: GenerationRequest, slot: str = "w1") -> Claim | None:
    return store.claim(model="demo", lane=asked.lane, generation_id=asked.generation_id, slot=slot, boot="b")


def claimed(store: Store, asked: GenerationRequest, slot: str = "w1") -> Claim:
    found = claim(store, asked, slot)
    assert found is not None
    return found


def entry(run: int, seq: int, kind: str = "delta", text: str = "", at: int = 0, end: End | None = None):
    frame = Frame(generation_id="g", run=run, seq=seq, kind=kind, text=text, at=at, tokens=(seq,), end=end)  # type: ignore[arg-type]
    return f"{run}-{seq}", frame.entry()


def append(store: Store, held: Claim, expected: str, *entries: tuple[str, dict[str, str]]) -> str:
    (answer,) = store.append([(held.request.generation_id, held.lease.run, expected, entries)])
    assert isinstance(answer, str), answer
    return answer


def log_of(server: redis.Redis, asked: GenerationRequest) -> frames.Log:
    return frames.fold(asked.generation_id, server.xrange(names.log_key(asked.generation_id)))


def test_who_waits_gets_a_ticket_in_the_same_step_and_nobody_else(store: Store, server: redis.Redis) -> None:
    asked = request()
    assert scripts.enqueue(asked, Ticket("tickets", "first")) == "waiting"
    assert server.lrange("tickets", 0, -1) == ["first"]
    assert scripts.enqueue(request()) == "waiting"
    held = claimed(store, asked)
    assert scripts.enqueue(asked, Ticket("tickets", "second")) == "leased"
    assert append(store, held, f"{held.lease.run}-0", entry(held.lease.run, 1, "end", end=DONE)) == "ok"
    assert scripts.enqueue(asked, Ticket("tickets", "third")) == "ended"
    assert server.lrange("tickets", 0, -1) == ["first"]


def test_one_of_two_workers_gets_a_waiting_generation(store: Store) -> None:
    asked = request()
    assert scripts.enqueue(asked) == "waiting"
    first = claimed(store, asked)
    assert first.request == asked
    assert first.score == asked.accepted_ms
    assert claim(store, asked, "w2") is None


def test_a_look_sees_lane_by_lane_and_a_users_oldest_first(store: Store) -> None:
    late, early, vip = request(5), request(2), request(9, Lane.VIP)
    for asked in (late, early, vip):
        scripts.enqueue(asked)
    found = candidates(store.look("demo", num_users=4, num_ids=2), lambda lane, about: 100.0)
    assert [candidate.generation_id for candidate in found] == [
        vip.generation_id, early.generation_id, late.generation_id,
    ]  # fmt: skip
    assert found[0].about == About.of(vip)


def test_an_older_run_cannot_write_after_a_newer_was_claimed(store: Store, server: redis.Redis) -> None:
    asked = request()
    scripts.enqueue(asked)
    old = claimed(store, asked)
    assert append(store, old, f"{old.lease.run}-0", entry(old.lease.run, 1, "started")) == "ok"
    server.delete(names.lease_key(asked.generation_id))  # its lease lapsed: the worker was stopped for long
    scripts.enqueue(asked)
    new = claimed(store, asked, "w2")
    assert new.lease.run > old.lease.run
    assert new.prefix.seq == 1
    assert append(store, old, f"{old.lease.run}-1", entry(old.lease.run, 2, text="zombie")) == "newer"
    assert store.renew([(asked.generation_id, old.lease)])[0].verdict == "lost"
    assert append(store, new, f"{new.lease.run}-0", entry(new.lease.run, 2, text="right")) == "ok"
    assert log_of(server, asked).text == "right"


def test_the_run_grows_even_when_the_clock_steps_back(store: Store, server: redis.Redis) -> None:
    asked = request()
    future = 10_000_000_000_000
    server.xadd(names.log_key(asked.generation_id), {"k": "start"}, id=f"{future}-0")
    scripts.enqueue(asked)
    assert claimed(store, asked).lease.run == future + 1


def test_a_log_that_is_gone_or_shorter_is_seen_and_can_be_written_again(store: Store, server: redis.Redis) -> None:
    asked = request()
    scripts.enqueue(asked)
    held = claimed(store, asked)
    run = held.lease.run
    one, two, three = entry(run, 1, "started"), entry(run, 2, text="ab"), entry(run, 3, text="cd", at=2)
    assert append(store, held, f"{run}-0", one, two) == "ok"
    key = names.log_key(asked.generation_id)
    rows = server.xrange(key)
    server.delete(key)
    for id_, fields in rows[:-1]:  # as after a restart that lost the last second
        server.xadd(key, fields, id=id_)
    assert append(store, held, two[0], three) == f"short:{one[0]}"
    assert append(store, held, one[0], two, three) == "ok"
    server.flushall()
    assert append(store, held, three[0], entry(run, 4, text="x", at=4)) == "gone"
    assert store.renew([(asked.generation_id, held.lease)])[0].last_id == ""
    assert append(store, held, "", (f"{run}-0", {"k": "start"}), one, two, three) == "ok"
    assert log_of(server, asked).text == "abcd"
    assert server.pttl(names.log_key(asked.generation_id)) > 0


def test_stopping_one_that_waits_ends_it_and_one_that_runs_asks_its_worker(store: Store, server: redis.Redis) -> None:
    waiting, running = request(), request()
    for asked in (waiting, running):
        scripts.enqueue(asked)
    held = claimed(store, running)
    answer, _ = scripts.cancel(generation_id=waiting.generation_id, model="demo", lane="interactive", end=CANCELLED)
    assert answer == "written"
    log = log_of(server, waiting)
    assert log.end == dataclasses.replace(CANCELLED, sha256=frames.answer_sha256(""))
    assert [frame.kind for frame in log.frames] == ["started", "end"]
    assert claim(store, waiting) is None
    assert scripts.enqueue(waiting) == "ended"
    answer, lease = scripts.cancel(generation_id=running.generation_id, model="demo", lane="interactive", end=CANCELLED)
    assert (answer, lease) == ("asked", str(held.lease))
    assert store.renew([(running.generation_id, held.lease)])[0].verdict == "cancel"


def test_the_first_end_decides(store: Store, server: redis.Redis) -> None:
    asked = request()
    scripts.enqueue(asked)
    held = claimed(store, asked)
    run = held.lease.run
    assert append(store, held, f"{run}-0", entry(run, 1, "started"), entry(run, 2, "end", end=DONE)) == "ok"
    answer, _ = scripts.cancel(generation_id=asked.generation_id, model="demo", lane="interactive", end=CANCELLED)
    assert answer == "ended"
    failed = End(status="failed", code=Failure.QUARANTINED)
    assert scripts.end(generation_id=asked.generation_id, model="demo", lane="interactive", end=failed) == "ended"
    end = log_of(server, asked).end
    assert end is not None
    assert end.status == "done"
    assert append(store, held, f"{run}-2", entry(run, 3, text="late")) == "ended"
    assert append(store, held, f"{run}-1", entry(run, 2, "end", end=DONE)) == f"short:{run}-2", "it is the caller's own"


def test_a_leased_generation_is_not_ended_over_its_workers_head(store: Store) -> None:
    asked = request()
    scripts.enqueue(asked)
    claimed(store, asked)
    failed = End(status="failed", code=Failure.QUARANTINED)
    assert scripts.end(generation_id=asked.generation_id, model="demo", lane="interactive", end=failed) == "leased"


def test_a_handed_back_generation_waits_at_its_old_place_and_goes_on(store: Store, server: redis.Redis) -> None:
    asked = request(accepted_ms=123)
    scripts.enqueue(asked)
    held = claimed(store, asked)
    run = held.lease.run
    append(store, held, f"{run}-0", entry(run, 1, "started"), entry(run, 2, text="so far"))
    assert store.hand_back(held) == "waiting"
    assert server.zscore(names.wait_key("demo", "interactive"), asked.generation_id) == 123
    again = claimed(store, asked, "w2")
    assert (again.prefix.text, again.prefix.tokens, again.prefix.seq) == ("so far", (1, 2), 2)
    assert store.hand_back(held) == "lost"


def test_a_hand_back_that_crosses_a_stop_is_told_so(store: Store) -> None:
    asked = request()
    scripts.enqueue(asked)
    held = claimed(store, asked)
    scripts.cancel(generation_id=asked.generation_id, model="demo", lane="interactive", end=CANCELLED)
    assert store.hand_back(held) == "cancelled"


def test_after_it_is_stored_nothing_without_expiry_is_left(store: Store, server: redis.Redis) -> None:
    asked = request()
    scripts.enqueue(asked)
    held = claimed(store, asked)
    run = held.lease.run
    append(store, held, f"{run}-0", entry(run, 1, "started"), entry(run, 2, "end", end=DONE))
    server.zadd(names.watch_key(asked.generation_id), {"chat.web.1": 1})
    channels = scripts.stored(generation_id=asked.generation_id, model="demo", lane="interactive", end=DONE)
    assert channels == ["chat.web.1"]
    # Beside the log only what its user has had, so that the next turn is fair; all with an expiry.
    fair = {names.served_key("demo", "interactive"), names.fair_key("demo")}
    assert set(server.keys("*")) == {names.log_key(asked.generation_id), *fair}
    assert all(server.pttl(key) > 0 for key in fair)
    assert 0 < server.pttl(names.log_key(asked.generation_id)) <= names.STORED_LOG_MS
    assert log_of(server, asked).is_stored
    assert store.renew([(asked.generation_id, held.lease)])[0].verdict == "stored"
    assert not server.exists(names.lease_key(asked.generation_id))


def test_a_generation_without_its_request_stays_for_the_sweeper(store: Store, server: redis.Redis) -> None:
    asked = request()
    scripts.enqueue(asked)
    server.delete(names.request_key(asked.generation_id))
    assert claim(store, asked) is None
    assert server.zcard(names.wait_key("demo", "interactive")) == 1


def test_both_sides_mean_the_same_attempt_by_the_last() -> None:
    assert sweeper.MAX_ATTEMPTS == fairness.MAX_ATTEMPTS
