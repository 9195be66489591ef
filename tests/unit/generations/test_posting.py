"""What is sent without waiting: its answer comes later, and whatever becomes of it the message waits once."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from chatproject import redis_client
from chatproject.contract import broker, names
from chatproject.contract.messages import GenerationRequest, SamplingParams, Turn
from chatproject.contract.names import Lane
from chatproject.generations import dispatch, scripts
from tests.chaos.planted import tickets as planted
from tests.servers import free_port, redis_server

pytestmark = pytest.mark.needs("redis")
ID = "11111111-2222-4333-8444-555555555555"
REQUEST = GenerationRequest(
    generation_id=ID, model="demo", lane=Lane.INTERACTIVE, user_id="u", turns=(Turn(role="user", text="Hi"),),
    params=SamplingParams(), accepted_ms=1, expires_ms=10**14,
)  # fmt: skip


@pytest.fixture(autouse=True)
def is_known(redis_here: str) -> None:
    """Let Redis know the script, as after the first message."""
    redis_client.client().script_load(scripts.scripts.ENQUEUE.source)


def announce() -> None:
    """Announce and wait until it was."""
    done = threading.Event()
    dispatch.announce(REQUEST, REQUEST.to_json(), then=done.set)
    assert done.wait(10)


def waits(server: redis.Redis) -> tuple[list[str], int]:
    """Return who waits, and how many tickets there are."""
    tickets = sum(server.llen(key) for key in broker.redis_lists(names.generate_queue("demo")))
    return server.zrange(names.wait_key("demo", Lane.INTERACTIVE), 0, -1), tickets


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note whatever is enqueued by a call that waits."""
    called: list[str] = []
    enqueue = scripts.enqueue

    def noted(request: GenerationRequest, ticket: Any = None) -> Any:
        called.append(request.generation_id)
        return enqueue(request, ticket)

    monkeypatch.setattr(scripts, "enqueue", noted)
    return called


def test_nothing_is_sent_before_a_connection_stands_ready() -> None:
    assert redis_client.posting().send("PING") is None


def test_it_is_there_before_its_answer_is_read(server: redis.Redis, full: list[str]) -> None:
    dispatch.open_connections()
    answer = scripts.post_enqueue(REQUEST, REQUEST.to_json(), dispatch._ticket(REQUEST))
    assert answer is not None
    deadline = time.monotonic() + 5
    while waits(server) != ([ID], 1):
        assert time.monotonic() < deadline
    assert answer() == "waiting"
    assert redis_client.posting().send("PING") is not None  # the connection is ready again
    assert full == []


def test_the_first_message_makes_a_connection_ready_for_the_next(server: redis.Redis, full: list[str]) -> None:
    announce()
    assert (waits(server), full) == (([ID], 1), [ID])
    server.flushdb()
    announce()
    assert (waits(server), full) == (([ID], 1), [ID])  # not by the call that waits


def closed(server: redis.Redis) -> None:
    server.client_kill_filter(_type="normal", skipme=True)


def forgotten(server: redis.Redis) -> None:
    server.script_flush()


def rested(server: redis.Redis) -> None:
    posting = redis_client.posting()
    used_at, connection = posting._ready.pop()
    posting._ready.append((used_at - redis_client.READY_S - 1, connection))


@pytest.mark.parametrize("break_it", [closed, forgotten, rested], ids=lambda each: each.__name__)
def test_a_connection_that_is_not_what_it_was_loses_nothing(
    server: redis.Redis, full: list[str], break_it: Callable[[redis.Redis], None]
) -> None:
    dispatch.open_connections()
    break_it(server)
    announce()
    assert (waits(server), full) == (([ID], 1), [ID])


def test_an_answer_that_never_comes_is_asked_for_again_and_the_message_waits_once(
    server: redis.Redis, full: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatch.open_connections()
    [(_, connection)] = redis_client.posting()._ready

    def deaf() -> Any:
        connection._sock.close()
        raise redis.TimeoutError("no answer")

    monkeypatch.setattr(connection, "read_response", deaf)
    announce()
    ids, num_tickets = waits(server)
    assert (ids, full) == ([ID], [ID])
    assert 1 <= num_tickets <= 2  # a spare one, if the first had come


def test_behind_a_redis_that_hangs_only_so_many_wait_and_the_sweeper_has_the_rest(
    server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch.open_connections()
    server.client_pause(3000)  # every command of every client, as one whose machine stands still
    done: list[int] = []
    began = time.monotonic()
    for number in range(1000):
        dispatch.announce(REQUEST, REQUEST.to_json(), then=functools.partial(done.append, number))
    assert time.monotonic() - began < 60  # nobody waited for it: that takes a second each time
    server.ping()  # answered when it goes on
    last = threading.Event()
    while not last.wait(0.1):  # behind all that wait, as soon as there is room
        assert time.monotonic() - began < 100
        dispatch.announce(REQUEST, REQUEST.to_json(), then=last.set)
    assert len(done) <= dispatch.MOST_WAITING + 50  # with those that were given up meanwhile
    [said] = [each for each in caplog.messages if "were left to the sweeper" in each]
    assert said.startswith("Redis is too slow: 1 generations")


def test_what_found_redis_away_waits_as_soon_as_it_is_back(redis_here: str, settings: Any, server: redis.Redis) -> None:
    port = free_port()
    settings.REDIS_URL = f"redis://127.0.0.1:{port}/0"
    redis_client.client.cache_clear()
    scripts._bound.cache_clear()
    announce()  # `then` is called all the same
    with redis_server(port=port) as url, redis.Redis.from_url(url, decode_responses=True) as back:
        deadline = time.monotonic() + 10
        while waits(back)[0] != [ID]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert waits(back)[1] == 1


def test_while_redis_is_away_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch.open_connections()
    posting = redis_client.posting()
    refused = SimpleNamespace(
        can_read=lambda timeout: False, disconnect=lambda: None,
        send_command=lambda *_, **__: (_ for _ in ()).throw(redis.ConnectionError("away")),
    )  # fmt: skip
    monkeypatch.setattr(posting, "_make", lambda: pytest.fail("it would connect"))
    posting._ready[0] = (time.monotonic(), refused)
    assert posting.send("PING") is None
    assert posting.send("PING") is None
    assert not posting._ready


def test_connections_that_stand_ready_are_few() -> None:
    posting = redis_client.posting()
    for _ in range(redis_client.MOST_READY + 3):
        posting.open()
    assert len(posting._ready) == redis_client.MOST_READY
    answers = [posting.send("PING") for _ in range(redis_client.MOST_READY)]
    posting.open()
    for answer in answers:
        assert answer is not None
        assert answer() in ("PONG", True)
    assert len(posting._ready) == redis_client.MOST_READY


@pytest.mark.parametrize("is_posted", [True, False], ids=["posted", "by a call that waits"])
def test_chaos_loses_and_repeats_tickets_whichever_way_they_go(
    server: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: list[str], is_posted: bool
) -> None:
    monkeypatch.setattr(scripts, "_enqueue", scripts._enqueue)  # to be put back
    control = tmp_path / "proxy.sock"
    planted.unreliable_accepts(scripts, str(control))
    order, count = planted.order_file(control), planted.count_file(control)
    for what, num_tickets, num_counted in (("drop", 0, 1), ("repeat", 3, 3), ("", 1, 3)):
        server.flushdb()
        order.write_text(what)
        if is_posted and not redis_client.posting()._ready:
            dispatch.open_connections()
        announce()
        deadline = time.monotonic() + 5
        while waits(server) != ([ID], num_tickets):
            assert time.monotonic() < deadline, waits(server)
            time.sleep(0.01)
        assert count.stat().st_size == num_counted
        if not is_posted:
            redis_client.posting()._ready.clear()
    assert full == ([] if is_posted else [ID] * 3)
