"""Log first, then show, over a real Redis that forgets, lags and goes away."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import pytest
import redis
from channels_redis.pubsub import RedisPubSubChannelLayer

from chatproject.contract import broker, frames, names, scripts
from chatproject.contract.messages import GenerationRequest, SamplingParams, Turn, WorkerStatus
from chatproject.contract.names import Lane
from tests.servers import free_port, redis_server
from workers.engine.interfaces import Finish, StepOutput
from workers.generation import ActiveGeneration
from workers.leases import Leases
from workers.publisher import ALONG, AT_ONCE, Publisher
from workers.store import Claim, Store

pytestmark = pytest.mark.needs("redis")


class Outside:
    """Notes what the publisher asks of the rest."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.cancelled: list[str] = []
        self.stored: list[str] = []
        self.rung: list[str] = []

    def drop(self, generation_id: str, run: int) -> None:
        self.dropped.append(generation_id)

    def cancel(self, generation_id: str, run: int) -> None:
        self.cancelled.append(generation_id)

    def ask_to_store(self, generation_id: str) -> None:
        self.stored.append(generation_id)

    def ring(self, active: ActiveGeneration) -> None:
        self.rung.append(active.id)


class Bench:
    """A publisher with its Redis, and a generation that was claimed."""

    def __init__(self, url: str, flush_ms: float = 5) -> None:
        self.url = url
        self.server = redis.Redis.from_url(url, decode_responses=True)
        self.store = Store(url)
        self.outside = Outside()
        self.publisher = Publisher(redis_url=url, flush_ms=flush_ms, outside=self.outside)
        self.publisher.start()

    def claim(self) -> Claim:
        request = GenerationRequest(
            generation_id=str(uuid.uuid4()), model="demo", lane=Lane.INTERACTIVE, user_id="u",
            turns=(Turn(role="user", text="hi"),), params=SamplingParams(), accepted_ms=1, expires_ms=2,
            watcher="chat.web.test",
        )  # fmt: skip
        keys = [
            names.request_key(request.generation_id), names.wait_key("demo", "interactive"),
            names.lease_key(request.generation_id), names.log_key(request.generation_id),
        ]  # fmt: skip
        enqueue = self.server.register_script(scripts.ENQUEUE.source)
        assert enqueue(keys=keys, args=[request.generation_id, request.to_json(), 1, 60_000]) == "waiting"
        return self.take(request)

    def take(self, request: GenerationRequest) -> Claim:
        claim = self.store.claim(
            model="demo", lane=Lane.INTERACTIVE, generation_id=request.generation_id, slot="w", boot="b"
        )
        assert claim is not None
        return claim

    def begin(self) -> ActiveGeneration:
        active = ActiveGeneration(self.claim(), queue_ms=0, claimed_at=0.0)
        self.publisher.begin(active)
        return active

    def step(self, active: ActiveGeneration, token: int, text: str, finish: Finish | None = None) -> None:
        output = StepOutput(sequence_id=f"{active.id}/{active.run}", tokens=(token,), text=text, finish=finish)
        self.publisher.on_step([output])

    def log(self, active: ActiveGeneration) -> frames.Log:
        return frames.fold(active.id, self.server.xrange(names.log_key(active.id)))  # type: ignore[arg-type]

    def renew(self) -> None:
        leases = self.publisher.leases()
        asked_at, answers = time.monotonic(), self.store.renew(leases)
        said = ((id_, lease.run, each) for (id_, lease), each in zip(leases, answers, strict=True))
        self.publisher.on_renewals(said, asked_at=asked_at)


def leases_of(bench: Bench, errors: list[BaseException]) -> Leases:
    status = WorkerStatus(slot="w", boot="b", model="demo", state="ready", slots=4, running=1, steps=7, rows_per_step=1)
    return Leases(
        store=bench.store, publisher=bench.publisher, worker_status=lambda: status, model_status=lambda: None,
        on_fatal=errors.append, hang_s=0.2,
    )  # fmt: skip


def eventually(is_so: Callable[[], bool], timeout_s: float = 8.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so"
        threading.Event().wait(0.005)


@pytest.fixture
def bench(fresh_redis_url: str) -> Iterator[Bench]:
    made = Bench(fresh_redis_url)
    yield made
    made.publisher.stop(timeout_s=2)


def test_every_frame_is_in_the_log_before_it_is_shown(bench: Bench) -> None:
    shown: list[tuple[int, int]] = []  # (seq shown, seq in the log at that moment)
    is_listening = threading.Event()

    async def listen() -> None:
        layer = RedisPubSubChannelLayer(**broker.channel_layer(bench.url)["CONFIG"])
        receiving = asyncio.ensure_future(layer.receive("chat.web.test"))
        await asyncio.sleep(0.1)
        is_listening.set()
        while True:
            for frame in frames.frames_of_message(await receiving):
                shown.append((frame.seq, bench.log(active).seq))
                if frame.seq == 6:
                    return
            receiving = asyncio.ensure_future(layer.receive("chat.web.test"))

    reader = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(listen(), 20)), daemon=True)
    active = ActiveGeneration(bench.claim(), queue_ms=0, claimed_at=0.0)
    reader.start()
    assert is_listening.wait(10)
    bench.publisher.begin(active)
    for index in range(5):
        bench.step(active, index, f"w{index} ")
        eventually(lambda index=index: bench.log(active).seq == index + 2)
    reader.join(20)
    assert [seq for seq, _ in shown] == [1, 2, 3, 4, 5, 6]
    assert all(logged >= seq for seq, logged in shown)


def test_what_stands_beside_a_log_that_takes_nothing_is_shown(fresh_redis_url: str) -> None:
    bench = Bench(fresh_redis_url, flush_ms=50)
    layer = RedisPubSubChannelLayer(**broker.channel_layer(bench.url)["CONFIG"])
    hearing = redis.Redis.from_url(bench.url).pubsub(ignore_subscribe_messages=True)
    hearing.subscribe("chat.web.test")
    ours, lost = bench.begin(), bench.begin()
    for active in (ours, lost):
        bench.step(active, 1, "one ")
    eventually(lambda: bench.log(ours).text == bench.log(lost).text == "one ")
    bench.server.xadd(names.log_key(lost.id), {"k": "start"}, id=f"{lost.run + 1}-0")
    both = [
        StepOutput(sequence_id=f"{active.id}/{active.run}", tokens=(2,), text="two", finish=Finish(reason="stop"))
        for active in (lost, ours)
    ]
    bench.publisher.on_step(both)
    eventually(lambda: bench.outside.stored == [ours.id] and bench.outside.dropped == [lost.id])
    bench.publisher.stop(timeout_s=2)
    shown: dict[str, str] = {ours.id: "", lost.id: ""}
    with redis.Redis.from_url(bench.url) as sender:
        sender.publish("chat.web.test", layer.serialize(frames.channel_message([])))
    while heard := _heard(hearing, layer):
        for frame in heard:
            shown[frame.generation_id] += frame.text
    assert shown == {ours.id: "one two", lost.id: "one "}


def _heard(hearing: Any, layer: Any) -> list[frames.Frame]:
    message = None
    while message is None:
        message = hearing.get_message(timeout=5)
    return frames.frames_of_message(layer.deserialize(message["data"]))


def test_what_was_left_by_an_outage_is_written_whether_or_not_it_can_be_shown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog that went along with the logs took longer than the write may, was kept, and grew: for good."""
    append, along = Store.append, []

    def append_and_note(self: Store, writes: Sequence[Any], messages: Sequence[Any] = ()) -> list[str]:
        along.append(sum(len(message) for _, message in messages))
        return append(self, writes, messages)

    monkeypatch.setattr(Store, "append", append_and_note)
    layer = RedisPubSubChannelLayer(**broker.channel_layer(bench.url)["CONFIG"])
    hearing = redis.Redis.from_url(bench.url).pubsub(ignore_subscribe_messages=True)
    hearing.subscribe("chat.web.test")
    active = bench.begin()
    text = "x" * (ALONG + 1)
    bench.step(active, 1, text)
    eventually(lambda: bench.log(active).text == text)
    bench.step(active, 2, "small")
    eventually(lambda: bench.log(active).text == text + "small")
    shown = ""
    while len(shown) < len(text) + 5:
        shown += "".join(frame.text for frame in _heard(hearing, layer))
    assert shown == text + "small"
    assert 0 < max(along) < ALONG


def test_redis_that_forgot_the_scripts_is_taught_them_again(bench: Bench) -> None:
    active = bench.begin()
    bench.step(active, 1, "one ")
    eventually(lambda: bench.log(active).text == "one ")
    bench.server.script_flush()
    bench.step(active, 2, "two ")
    eventually(lambda: bench.log(active).text == "one two ")
    bench.server.script_flush()
    assert [renewal.verdict for renewal in bench.store.renew(bench.publisher.leases())] == ["ok"]


def test_the_first_token_waits_for_no_window_and_the_second_does(fresh_redis_url: str) -> None:
    bench = Bench(fresh_redis_url, flush_ms=60_000)
    active = bench.begin()
    eventually(lambda: bench.log(active).seq == 1)  # `started` was told, and opens no window
    bench.step(active, 1, "one ")
    eventually(lambda: bench.log(active).text == "one ")
    bench.step(active, 2, "two ")
    finish = Finish(reason="length", prompt_tokens=1, completion_tokens=3)
    others = [bench.begin() for _ in range(3 * AT_ONCE)]  # more than go into one pipeline
    for other in others:
        bench.step(other, 1, "hi")
    eventually(lambda: all(bench.log(other).text == "hi" for other in others))
    assert bench.log(active).text == "one "
    bench.step(active, 3, "three", finish)
    eventually(lambda: bench.log(active).end is not None)
    assert [frame.text for frame in bench.log(active).frames] == ["", "one ", "two three", ""]
    bench.publisher.stop(timeout_s=2)


def test_started_is_told_alone_only_when_no_token_comes_at_once(bench: Bench) -> None:
    quick = ActiveGeneration(bench.claim(), queue_ms=0, claimed_at=time.monotonic() + 60)
    bench.publisher.begin(quick)
    slow = ActiveGeneration(bench.claim(), queue_ms=0, claimed_at=time.monotonic())
    bench.publisher.begin(slow)
    eventually(lambda: bench.log(slow).seq == 1)
    assert bench.log(quick).seq == 0
    bench.step(quick, 1, "one ")
    eventually(lambda: bench.log(quick).text == "one ")
    assert [frame.kind for frame in bench.log(quick).frames] == ["started", "delta"]


def test_a_log_that_redis_lost_is_written_again_whole(bench: Bench) -> None:
    active = bench.begin()
    bench.step(active, 1, "one ")
    eventually(lambda: bench.log(active).text == "one ")
    bench.server.flushall()
    bench.step(active, 2, "two")
    eventually(lambda: bench.log(active).text == "one two")
    assert [frame.seq for frame in bench.log(active).frames] == [1, 2, 3]
    bench.renew()
    assert bench.server.get(names.lease_key(active.id)) == str(active.claim.lease)


def test_a_log_lost_while_nothing_is_written_is_seen_at_the_renewal(bench: Bench) -> None:
    active = bench.begin()
    bench.step(active, 1, "all there is", Finish(reason="stop"))
    eventually(lambda: bench.outside.stored == [active.id])
    bench.server.flushall()
    bench.renew()
    eventually(lambda: bench.server.exists(names.log_key(active.id)) and bench.log(active).end is not None)
    assert bench.log(active).text == "all there is"


def test_a_log_that_lost_its_last_second_is_filled(bench: Bench) -> None:
    active = bench.begin()
    for index in range(3):
        bench.step(active, index, f"{index} ")
        eventually(lambda index=index: bench.log(active).seq == index + 2)
    key = names.log_key(active.id)
    rows = bench.server.xrange(key)
    bench.server.delete(key)
    for id_, fields in rows[:-2]:  # type: ignore[index]
        bench.server.xadd(key, fields, id=id_)
    bench.step(active, 9, "end")
    eventually(lambda: bench.log(active).text == "0 1 2 end")


def test_a_newer_run_makes_us_drop_it(bench: Bench) -> None:
    active = bench.begin()
    bench.step(active, 1, "mine")
    eventually(lambda: bench.log(active).text == "mine")
    bench.server.xadd(names.log_key(active.id), {"k": "start"}, id=f"{active.run + 1}-0")
    bench.step(active, 2, " still mine?")
    eventually(lambda: bench.outside.dropped == [active.id])
    assert bench.log(active).text == "mine"
    assert bench.publisher.is_settled()


def test_a_stop_reaches_the_engine_at_the_next_renewal(bench: Bench) -> None:
    active = bench.begin()
    eventually(lambda: bool(bench.publisher.leases()))
    bench.server.set(names.cancel_key(active.id), "1")
    bench.renew()
    eventually(lambda: bench.outside.cancelled == [active.id])


def test_an_end_is_asked_to_be_stored_until_it_is(bench: Bench) -> None:
    active = bench.begin()
    bench.step(active, 1, "x", Finish(reason="stop"))
    eventually(lambda: bench.outside.stored == [active.id, active.id])
    assert not bench.publisher.is_settled()
    bench.server.xadd(names.log_key(active.id), {"k": "stored"}, id=f"{active.run}-9")
    bench.renew()
    eventually(bench.publisher.is_settled)
    assert not bench.server.exists(names.lease_key(active.id))


def test_an_end_that_was_written_although_the_answer_got_lost_is_still_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for another's end, it was forgotten: a Redis that then lost its data lost the answer. Found by chaos."""
    append, answers_lost = Store.append, threading.Event()

    def append_and_hear_nothing(self: Store, writes: Sequence[Any], messages: Sequence[Any] = ()) -> list[str]:
        answers = append(self, writes, messages)
        if (
            any(fields.get("k") == "end" for *_, entries in writes for _, fields in entries)
            and not answers_lost.is_set()
        ):
            answers_lost.set()
            raise redis.TimeoutError("the answer got lost")
        return answers

    monkeypatch.setattr(Store, "append", append_and_hear_nothing)
    active = bench.begin()
    bench.step(active, 1, "Mars", Finish(reason="stop", prompt_tokens=1, completion_tokens=1))
    eventually(lambda: bench.outside.stored == [active.id])
    assert answers_lost.is_set()
    assert bench.outside.dropped == []
    bench.server.flushall()
    bench.renew()
    eventually(lambda: bench.log(active).end is not None)
    assert bench.log(active).text == "Mars"


@pytest.mark.parametrize("num_written_anew", [1, 2, 3])
def test_a_redis_that_lost_all_and_then_finds_the_old_log_again(bench: Bench, num_written_anew: int) -> None:
    """The log was numbered anew meanwhile: of another length, with some of the same ids."""
    first = bench.begin()
    bench.step(first, 1, "a ")
    eventually(lambda: bench.log(first).text == "a ")
    bench.publisher.hand_back(first.id, first.run)
    eventually(lambda: bench.outside.rung == [first.id])
    active = ActiveGeneration(bench.take(first.claim.request), queue_ms=0, claimed_at=0.0)
    bench.publisher.begin(active)
    bench.step(active, 2, "b ")
    eventually(lambda: bench.log(active).text == "a b ")
    key = names.log_key(active.id)
    old = bench.server.xrange(key)
    bench.server.flushall()
    text = "a b "
    for number in range(num_written_anew):
        bench.step(active, 3 + number, "c ")
        text += "c "
        eventually(lambda: bench.log(active).text == text)  # noqa: B023
    pipe = bench.server.pipeline(transaction=True)
    pipe.delete(key)
    for id_, fields in old:
        pipe.xadd(key, fields, id=id_)
    pipe.execute()
    bench.step(active, 9, "z", Finish(reason="stop", prompt_tokens=1, completion_tokens=1))
    eventually(lambda: bench.log(active).end is not None)
    assert bench.log(active).text == text + "z"
    assert bench.outside.dropped == []


def test_a_hand_back_writes_what_is_there_first(bench: Bench) -> None:
    active = bench.begin()
    bench.step(active, 1, "so far")
    bench.publisher.hand_back(active.id, active.run)
    eventually(lambda: bench.outside.rung == [active.id])
    again = bench.take(active.claim.request)
    assert (again.prefix.text, again.prefix.tokens) == ("so far", (1,))
    assert bench.publisher.is_settled()


def test_an_older_run_that_is_handed_back_late_takes_nothing_from_a_newer_one_here(bench: Bench) -> None:
    """Its lease had lapsed, and the same worker has claimed the generation again."""
    first = bench.begin()
    bench.step(first, 1, "so ")
    eventually(lambda: bench.log(first).text == "so ")
    bench.server.delete(names.lease_key(first.id))
    bench.server.zadd(names.wait_key("demo", "interactive"), {first.id: 1})
    second = ActiveGeneration(bench.take(first.claim.request), queue_ms=0, claimed_at=0.0)
    both_are_said = threading.Event()
    bench.publisher._call(both_are_said.wait, 8.0)
    bench.publisher.hand_back(first.id, first.run)
    bench.publisher.begin(second)
    both_are_said.set()
    bench.step(first, 7, "of nobody any more ")
    bench.step(second, 2, "far", Finish(reason="stop", prompt_tokens=1, completion_tokens=1))
    eventually(lambda: bench.log(second).end is not None)
    assert bench.log(second).text == "so far"
    assert bench.publisher.leases() == [(second.id, second.claim.lease)]
    assert bench.outside.dropped == [first.id]
    eventually(lambda: bench.outside.stored == [second.id])
    assert bench.outside.rung == []


def test_a_redis_that_is_away_costs_a_pause_and_no_token() -> None:
    port = free_port()
    with redis_server(port=port) as url:
        bench = Bench(url)
        active = bench.begin()
        bench.step(active, 1, "before ")
        eventually(lambda: bench.log(active).text == "before ")
    for index in range(3):
        bench.step(active, 2 + index, f"{index} ")
    with redis_server(port=port):
        bench.step(active, 9, "after", Finish(reason="stop"))
        eventually(lambda: bench.server.exists(names.log_key(active.id)) and bench.log(active).end is not None)
        assert bench.log(active).text == "before 0 1 2 after"
        assert bench.log(active).tokens == (1, 2, 3, 4, 9)
        bench.publisher.stop(timeout_s=2)


def test_an_output_that_is_taken_while_it_is_given_is_told() -> None:
    class Taken(deque[Any]):
        """As if the publisher took it in this moment, in a turn that has chosen already what it tells."""

        def append(self, item: Any) -> None:
            pass

    publisher = Publisher.__new__(Publisher)
    publisher._outputs, publisher._words = Taken(), SimpleQueue()
    publisher.on_step([])
    assert not publisher._words.empty()


def test_a_publisher_that_hangs_ends_its_process_and_one_without_work_does_not(bench: Bench) -> None:
    errors: list[BaseException] = []
    leases, goes_on = leases_of(bench, errors), threading.Event()
    time.sleep(0.3)  # longer than it may hang: there is nothing to publish
    bench.begin()
    eventually(lambda: bool(bench.publisher.leases()))
    for _ in range(5):
        leases.renew()
        time.sleep(0.1)
    assert errors == []
    bench.publisher._call(goes_on.wait, 8.0)
    for _ in range(5):
        leases.renew()
        time.sleep(0.1)
    goes_on.set()
    assert errors
