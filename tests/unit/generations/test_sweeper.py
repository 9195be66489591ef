"""What nobody serves comes back, however Redis forgot it; what nobody can serve ends with a reason."""

from __future__ import annotations

from datetime import timedelta

import pytest
import redis
from django.utils import timezone

from chatproject.contract import broker, names
from chatproject.contract.frames import End, Frame
from chatproject.contract.names import Lane
from chatproject.generations import admission, records, scripts, selectors, services
from chatproject.generations.models import Generation
from chatproject.generations.sweeper import ENDS_EVERY, LONG_LINE, Sweeper
from chatproject.ops.up import lost_leases
from workers.store import Claim, Store

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sweeper(clock: Clock) -> Sweeper:
    return Sweeper(clock=clock)


def look(sweeper: Sweeper, clock: Clock, times: int = 3) -> None:
    for _ in range(times):
        sweeper.sweep()
        clock.now += 1.0


def waiting(server: redis.Redis) -> list[str]:
    return server.zrange(names.wait_key("demo", "interactive"), 0, -1)


def run_and_die(store: Store, server: redis.Redis, generation: Generation, *, tokens: int) -> Claim:
    claim = store.claim(model="demo", lane="interactive", generation_id=str(generation.id), slot="w", boot="b")  # type: ignore[arg-type]
    assert claim is not None
    run, seq, at = claim.lease.run, claim.prefix.seq, len(claim.prefix.text)
    frames = [] if seq else [Frame(generation_id="g", run=run, seq=1, kind="started")]
    if tokens:
        seq = max(seq, 1) + 1
        frames.append(
            Frame(generation_id="g", run=run, seq=seq, kind="delta", at=at, text="x" * tokens, tokens=(7,) * tokens)
        )
    store.append([(str(generation.id), run, f"{run}-0", [(f"{run}-{frame.seq}", frame.entry()) for frame in frames])])
    server.delete(names.lease_key(str(generation.id)))
    return claim


def test_a_generation_that_redis_never_heard_of_waits_after_two_looks(draft, sweeper, clock, server) -> None:
    generation = admission.accept(draft()).generation
    look(sweeper, clock, times=2)
    assert waiting(server) == []
    look(sweeper, clock, times=1)
    assert waiting(server) == [str(generation.id)]
    assert server.llen("generate.demo\x06\x163") >= 1
    assert Generation.objects.get().attempt == 1


def test_a_generation_in_the_queue_without_its_request_gets_it_again(draft, sweeper, clock, server) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    server.delete(names.request_key(str(generation.id)))
    look(sweeper, clock)
    assert server.exists(names.request_key(str(generation.id)))


def test_a_served_generation_is_left_alone(draft, sweeper, clock, server, store: Store) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    store.claim(model="demo", lane="interactive", generation_id=str(generation.id), slot="w", boot="b")  # type: ignore[arg-type]
    look(sweeper, clock, times=5)
    assert waiting(server) == []
    assert Generation.objects.get().version == 0


def test_of_hundreds_that_are_served_little_is_asked(draft, sweeper, clock, server, store: Store) -> None:
    served = [admission.accept(draft()).generation for _ in range(20)]
    for generation in served:
        scripts.enqueue(selectors.request_of(generation))
        begin(store, generation, "w")
    waits = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(waits))
    look(sweeper, clock, times=1)
    before = server.info("stats")["total_commands_processed"]
    look(sweeper, clock, times=ENDS_EVERY - 1)
    num_looks = ENDS_EVERY - 1
    assert server.info("stats")["total_commands_processed"] - before < num_looks * len(served)


def test_an_end_that_its_worker_tells_nobody_is_stored_all_the_same(draft, sweeper, clock, server, store) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    run = begin(store, generation, "w").lease.run
    look(sweeper, clock, times=1)
    end = Frame(generation_id="g", run=run, seq=2, kind="end", end=End(status="done"))
    started = Frame(generation_id="g", run=run, seq=1, kind="started")
    store.append([(str(generation.id), run, f"{run}-0", [(f"{run}-{x.seq}", x.entry()) for x in (started, end)])])
    asked = sum(map(server.llen, broker.redis_lists(names.RECORDS_QUEUE)))
    look(sweeper, clock, times=ENDS_EVERY)
    assert server.exists(names.lease_key(str(generation.id)))
    assert sum(map(server.llen, broker.redis_lists(names.RECORDS_QUEUE))) > asked


def test_a_redis_error_makes_the_looks_start_over(draft, sweeper, clock, server, settings) -> None:
    admission.accept(draft())
    look(sweeper, clock, times=2)
    sweeper._missing_since.clear()  # what run() does on any error of Redis
    look(sweeper, clock, times=2)
    assert waiting(server) == []


def test_a_run_that_died_with_progress_goes_on_and_one_without_counts(draft, sweeper, clock, server, store) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    run_and_die(store, server, generation, tokens=2)
    look(sweeper, clock)
    row = Generation.objects.get()
    assert (row.attempt, row.deaths, row.tokens_at_death) == (1, 1, 2)
    run_and_die(store, server, generation, tokens=0)
    look(sweeper, clock)
    assert Generation.objects.get().attempt == 2
    claim = store.claim(model="demo", lane="interactive", generation_id=str(generation.id), slot="w", boot="b")
    assert claim is not None
    assert (claim.prefix.text, claim.request.attempt) == ("xx", 2)


def begin(store: Store, generation: Generation, slot: str) -> Claim:
    claim = store.claim(model="demo", lane=Lane.INTERACTIVE, generation_id=str(generation.id), slot=slot, boot="b")
    assert claim is not None
    return claim


def test_who_came_last_of_many_is_looked_at_too(draft, sweeper, clock, server, monkeypatch) -> None:
    monkeypatch.setattr("chatproject.generations.sweeper.PAGE", 3)
    rows = sorted((admission.accept(draft()).generation for _ in range(8)), key=lambda row: row.id)
    Generation.objects.update(accepted_at=timezone.now())  # pages go on within one moment
    for generation in rows[:-1]:
        scripts.enqueue(selectors.request_of(generation))
    look(sweeper, clock)
    assert set(waiting(server)) == {str(generation.id) for generation in rows}


def test_of_thousands_that_wait_little_is_asked(draft, sweeper, clock, server) -> None:
    for _ in range(30):
        scripts.enqueue(selectors.request_of(admission.accept(draft()).generation))
    before = server.info("stats")["total_commands_processed"]
    look(sweeper, clock, times=ENDS_EVERY)
    rings = sum(map(server.llen, broker.redis_lists(names.generate_queue("demo"))))
    assert server.info("stats")["total_commands_processed"] - before < 30 * ENDS_EVERY + rings


def test_a_death_is_counted_once_however_often_redis_refuses_the_queue(draft, sweeper, clock, server, store) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    run_and_die(store, server, generation, tokens=0)
    server.config_set("min-replicas-to-write", 1)
    try:
        for _ in range(20):
            try:
                sweeper.sweep()
            except redis.RedisError:
                sweeper._missing_since.clear()  # what run() does
            clock.now += 1.0
    finally:
        server.config_set("min-replicas-to-write", 0)
    assert Generation.objects.get().version > 1
    look(sweeper, clock)
    row = Generation.objects.get()
    assert (row.deaths, row.attempt) == (1, 2)
    assert waiting(server) == [str(generation.id)]


def test_what_a_supervisor_saw_die_is_brought_back_at_the_first_look(draft, clock, server, store, redis_here) -> None:
    mine, other = admission.accept(draft()).generation, admission.accept(draft()).generation
    for generation, slot in ((mine, "w1"), (other, "w2")):
        scripts.enqueue(selectors.request_of(generation))
        begin(store, generation, slot)
    assert lost_leases.mark(redis_here, "w1") == 1
    assert 0 < server.pttl(names.LOST_KEY) <= names.LOST_MS
    look(Sweeper(clock=clock), clock, times=1)
    assert waiting(server) == [str(mine.id)]
    assert server.get(names.lease_key(str(other.id))) is not None
    # The next run is served like any other; an old mark does not take it away.
    server.sadd(names.LOST_KEY, str(mine.id))
    begin(store, mine, "w1")
    look(Sweeper(clock=clock), clock, times=3)
    assert waiting(server) == []


def test_two_sweepers_count_one_death(draft, clock, server, store, redis_here, monkeypatch) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    begin(store, generation, "w1")
    lost_leases.mark(redis_here, "w1")
    enqueue = scripts.enqueue

    def while_another_looks(*args: object, **fields: object) -> object:
        monkeypatch.setattr(scripts, "enqueue", enqueue)
        Sweeper(clock=clock).sweep()
        return enqueue(*args, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(scripts, "enqueue", while_another_looks)
    Sweeper(clock=clock).sweep()
    row = Generation.objects.get()
    assert (row.deaths, row.attempt, row.version) == (1, 2, 1)
    assert waiting(server) == [str(generation.id)]


def test_a_lease_that_is_no_more_the_dead_ones_is_left_alone(draft, server, store, redis_here) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    begin(store, generation, "w10")
    assert lost_leases.mark(redis_here, "w1") == 0
    assert not server.exists(names.LOST_KEY)
    assert lost_leases.mark("redis://127.0.0.1:1/0", "w10") == 0  # Redis is away: the lease lapses by itself


def test_a_message_that_kills_its_workers_is_set_aside_with_what_it_had(draft, sweeper, clock, server, store) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    run_and_die(store, server, generation, tokens=1)
    look(sweeper, clock)
    for _ in range(3):
        run_and_die(store, server, generation, tokens=0)
        look(sweeper, clock)
    assert waiting(server) == []
    stored = records.store(str(generation.id))
    assert stored is not None
    assert (stored.end.status, stored.end.code, stored.generation.answer) == ("failed", "quarantined", "x")


def test_a_message_that_waited_too_long_expires(draft, sweeper, clock, server) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    Generation.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    look(sweeper, clock, times=1)
    assert waiting(server) == []
    stored = records.store(str(generation.id))
    assert stored is not None
    assert (stored.end.status, stored.end.code) == ("expired", "expired")


def test_a_stop_that_redis_did_not_hear_is_repeated(draft, sweeper, clock, server) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    services.stop(user_id=generation.user_id, generation_id=generation.id)  # its push runs only after a commit
    assert waiting(server) == [str(generation.id)]
    look(sweeper, clock, times=1)
    assert waiting(server) == []
    stored = records.store(str(generation.id))
    assert stored is not None
    assert stored.end.status == "cancelled"


def test_a_lost_ticket_is_rung_again(draft, sweeper, clock, server) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    look(sweeper, clock, times=1)
    assert server.llen("generate.demo\x06\x163") == 1
    look(sweeper, clock, times=3)
    assert server.llen("generate.demo\x06\x163") == 1


def test_who_is_slow_to_store_is_not_asked_ever_more(draft, sweeper, clock, server, store) -> None:
    generation = admission.accept(draft()).generation
    scripts.enqueue(selectors.request_of(generation))
    run_and_die(store, server, generation, tokens=1)
    scripts.end(
        generation_id=str(generation.id), model="demo", lane="interactive", end=End(status="failed", code="shutdown")
    )
    lists = broker.redis_lists(names.RECORDS_QUEUE)
    look(sweeper, clock, times=2 * LONG_LINE)
    assert sum(map(server.llen, lists)) == LONG_LINE
    server.delete(*lists)
    look(sweeper, clock, times=1)
    assert sum(map(server.llen, lists)) == 1
