"""A message that could not be answered in time is refused at once, with the time to try again; and nothing is kept."""

from __future__ import annotations

import pytest
import redis

from chatproject import metrics, redis_client
from chatproject.accounts.errors import Refused
from chatproject.accounts.models import DailyUse, Reservation, User
from chatproject.contract import names
from chatproject.contract.messages import ModelStatus, WorkerStatus
from chatproject.generations import admission, model_states
from chatproject.generations.models import Generation
from tests.unit.generations.conftest import make_user

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time stands still, so that only the tests look at the queue."""
    clock = Clock()
    monkeypatch.setattr(model_states, "clock", clock)
    return clock


def set_up_worker(server: redis.Redis, *, places: int, seconds: float, running: int | None = None) -> None:
    worker = WorkerStatus(
        slot="w1", boot="b", model="demo", state="ready", slots=places,
        running=places if running is None else running, steps=1, rows_per_step=1.0,
    )  # fmt: skip
    model = ModelStatus(
        model="demo", context_tokens=8000, vocabulary_sha256="", turn_tokens=4, slots=places, seconds_per_token=0.01,
        state="ready", seconds_per_generation=seconds,
    )  # fmt: skip
    server.sadd(names.WORKERS_KEY, "w1")
    server.set(names.worker_key("w1"), worker.to_json())
    server.set(names.model_key("demo"), model.to_json())


def let_wait(server: redis.Redis, count: int, lane: str = "interactive") -> None:
    if count:
        server.zadd(names.wait_key("demo", lane), {f"{lane}-{number}": number for number in range(count)})
    model_states.refresh("demo")


def refusal(draft: admission.Draft) -> Refused:
    with pytest.raises(Refused) as caught:
        admission.accept(draft)
    assert caught.value.code == "queue_full"
    return caught.value


def test_a_queue_too_long_for_the_time_limit_refuses_and_leaves_no_trace(draft, server, settings) -> None:
    settings.QUEUE_MAX_WAIT_S = 120
    set_up_worker(server, places=4, seconds=10.0)
    let_wait(server, 23)  # the 24th starts after 60 s
    assert admission.accept(draft()).is_new
    let_wait(server, 31)
    refused = refusal(draft())
    assert refused.retry_after_s == 20.0  # 80 s of work lie before it
    assert "60 s" in refused.message
    assert Generation.objects.count() == Reservation.objects.count() == 1
    assert DailyUse.objects.get().generations == 1
    assert b'chat_generations_refused_total{code="queue_full"}' in metrics.render()


def test_free_places_are_no_wait(draft, server, settings) -> None:
    settings.QUEUE_MAX_WAIT_S = 2
    set_up_worker(server, places=4, seconds=100.0, running=0)
    let_wait(server, 3)
    assert admission.accept(draft()).is_new
    let_wait(server, 4)
    refusal(draft())


def test_each_lane_is_judged_by_who_is_before_it(draft, server, settings) -> None:
    settings.QUEUE_MAX_WAIT_S = 120
    set_up_worker(server, places=1, seconds=10.0)
    let_wait(server, 500)
    refusal(draft())
    refusal(draft(user=make_user("slow", lane="background")))
    vip = make_user("vip", lane="vip")
    assert admission.accept(draft(user=vip)).is_new
    let_wait(server, 7, "vip")
    refusal(draft(user=vip))


def test_the_queue_is_bounded_before_any_worker_was_seen(draft, server, settings) -> None:
    settings.QUEUE_MAX_WAITING = 20
    let_wait(server, 19)
    assert admission.accept(draft()).is_new
    let_wait(server, 20)
    assert refusal(draft()).retry_after_s == 30.0
    assert Generation.objects.count() == 1
    # A lane of its own is not filled by those behind it.
    assert admission.accept(draft(user=make_user("vip", lane="vip"))).is_new


def test_a_burst_between_two_looks_is_counted(
    draft, server, settings, django_capture_on_commit_callbacks
) -> None:  # fmt: skip
    settings.QUEUE_MAX_WAITING = 3
    let_wait(server, 0)
    for _ in range(3):
        with django_capture_on_commit_callbacks(execute=True):
            admission.accept(draft())
    refusal(draft())


def test_one_user_cannot_fill_the_queue_for_all(draft, server, settings, alice: User) -> None:
    settings.QUEUE_MAX_WAITING_PER_USER = 3
    bob = make_user("bob")
    for _ in range(3):
        admission.accept(draft(user=bob))
    let_wait(server, 3)
    refused = refusal(draft(user=bob))
    assert "3 of your messages" in refused.message
    assert refused.retry_after_s is not None
    assert admission.accept(draft(user=alice)).is_new
    Generation.objects.filter(user=bob).first().delete()  # type: ignore[union-attr]
    assert admission.accept(draft(user=bob)).is_new


def test_a_retry_of_an_accepted_message_is_answered_in_a_full_queue(draft, server, settings) -> None:
    settings.QUEUE_MAX_WAITING = 1
    asked = draft()
    first = admission.accept(asked)
    let_wait(server, 5)
    again = admission.accept(draft(client_id=asked.client_id, thread=asked.thread))
    assert (again.generation.id, again.is_new) == (first.generation.id, False)
    refusal(draft())


def test_while_redis_is_away_nobody_is_refused_for_the_queue(draft, server, settings) -> None:
    settings.QUEUE_MAX_WAITING = settings.QUEUE_MAX_WAITING_PER_USER = 1
    set_up_worker(server, places=1, seconds=1000.0)
    let_wait(server, 50)
    refusal(draft())
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    redis_client.client.cache_clear()
    model_states.refresh("demo")
    admission.accept(draft())
    assert admission.accept(draft()).is_new
    status = model_states.latest("demo")
    assert status is not None  # what is known of the model is kept
    assert status.context_tokens == 8000


def test_the_crowd_of_an_hour_ago_refuses_nobody(draft, server, settings, clock: Clock, monkeypatch) -> None:
    settings.QUEUE_MAX_WAITING = 1
    let_wait(server, 50)
    refusal(draft())
    server.flushall()
    monkeypatch.setattr(model_states._thread, "submit", lambda *_: None)  # the new look takes its time
    clock.now += 3600
    assert admission.accept(draft()).is_new


def stand_in_line(server: redis.Redis, user: User, count: int) -> None:
    """Let ``count`` of the user's messages wait, as the scripts would have them."""
    ids = {f"{user.pk}-{number}": number for number in range(count)}
    server.zadd(names.wait_key("demo", "interactive"), ids)
    server.zadd(names.line_key("demo", "interactive", str(user.pk)), ids)
    server.zadd(names.turns_key("demo", "interactive"), {str(user.pk): 0.0})
    model_states.refresh("demo")


def test_the_long_line_of_one_keeps_out_nobody_else(draft, server, settings, alice: User) -> None:
    settings.QUEUE_MAX_WAIT_S = 120
    set_up_worker(server, places=1, seconds=10.0)
    bob = make_user("bob")
    stand_in_line(server, bob, 50)
    refused = refusal(draft(user=bob))
    assert "50 of them yours" in refused.message
    assert admission.accept(draft(user=alice)).is_new  # whose turn comes after one of bob's


def test_a_user_who_waits_already_waits_for_all_who_take_turns(draft, server, settings, alice: User) -> None:
    settings.QUEUE_MAX_WAIT_S = 120
    set_up_worker(server, places=1, seconds=10.0)  # six turns in the time that is promised
    bob = make_user("bob")
    for other in (bob, make_user("carol")):
        stand_in_line(server, other, 2)
    assert admission.accept(draft(user=alice)).is_new  # after one of each
    assert admission.accept(draft(user=bob)).is_new  # after 2 of his own and 3 of carol's
    stand_in_line(server, bob, 3)
    refusal(draft(user=bob))  # after 3 of his own and 4 of carol's
    assert admission.accept(draft(user=alice)).is_new


def test_a_worker_that_has_measured_nothing_yet_does_not_open_the_door(draft, server, settings) -> None:
    settings.QUEUE_MAX_WAIT_S = 120
    set_up_worker(server, places=4, seconds=10.0)
    let_wait(server, 31)
    refusal(draft())
    set_up_worker(server, places=4, seconds=0.0)
    let_wait(server, 31)
    refusal(draft())
