"""An accepted message is a row, a reservation and a place in the queue; a refused one is nothing at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import pytest
import redis
from django.db import connections

from chatproject.accounts.errors import Refused
from chatproject.accounts.models import DailyUse, Reservation
from chatproject.contract import names
from chatproject.contract.messages import GenerationRequest, ModelStatus, Turn
from chatproject.generations import admission, context, model_states
from chatproject.generations.models import Generation, ServedModel
from chatproject.generations.params import Params, parse_params
from tests.unit.generations.conftest import make_user

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db]


def refusal(draft: admission.Draft) -> Refused:
    with pytest.raises(Refused) as caught:
        admission.accept(draft)
    return caught.value


def eventually(is_so: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    """Look until it is so: dispatch works in threads of its own."""
    deadline = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline:
        threading.Event().wait(0.005)
    return is_so()


def test_an_accepted_message_waits_in_its_lane(draft, server: redis.Redis, django_capture_on_commit_callbacks) -> None:
    asked = draft(params=Params(temperature=0.0, max_tokens=7, stop=("x",)), watcher="chat.web.1")
    with django_capture_on_commit_callbacks(execute=True):
        accepted = admission.accept(asked)
    assert eventually(lambda: server.llen("generate.demo\x06\x163") == 1)
    assert accepted.is_new
    assert server.zrange(names.wait_key("demo", "interactive"), 0, -1) == [asked.generation_id]
    request = GenerationRequest.from_json(server.get(names.request_key(asked.generation_id)))
    assert (request.params.temperature, request.params.max_tokens, request.params.stop) == (0.0, 7, ("x",))
    assert request.watcher == "chat.web.1"
    assert request.turns == asked.turns


def test_the_ticket_carries_no_text(draft, server: redis.Redis, django_capture_on_commit_callbacks) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        admission.accept(draft(turns=(Turn(role="user", text="my secret"),)))
    assert eventually(lambda: server.llen("generate.demo\x06\x163") == 1)
    ticket = server.lindex("generate.demo\x06\x163", 0)
    assert "secret" not in ticket
    assert '"task": "chat.generate"' in ticket


def test_the_same_message_twice_is_one_generation(draft) -> None:
    asked = draft()
    first = admission.accept(asked)
    again = admission.accept(draft(client_id=asked.client_id, thread=asked.thread))
    assert (again.generation.id, again.is_new) == (first.generation.id, False)
    assert Generation.objects.count() == Reservation.objects.count() == 1


def test_the_same_id_with_other_words_is_refused(draft) -> None:
    asked = draft()
    admission.accept(asked)
    assert refusal(draft(client_id=asked.client_id, body_sha256="other")).code == "id_reused"


def test_a_conversation_answers_one_message_at_a_time(draft) -> None:
    asked = draft()
    admission.accept(asked)
    assert refusal(draft(thread=asked.thread)).code == "conversation_busy"
    admission.accept(draft())
    admission.accept(draft(thread=None))
    admission.accept(draft(thread=None))


def test_a_missing_seed_is_drawn_and_kept(draft) -> None:
    seeds = {admission.accept(draft()).generation.request["params"]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert admission.accept(draft(params=Params(seed=5))).generation.request["params"]["seed"] == 5


@pytest.mark.parametrize(
    ("turns", "code"),
    [
        ((), "empty_text"),
        ((Turn(role="user", text=" \n "),), "empty_text"),
        ((Turn(role="user", text="a\x00b"),), "bad_params"),
        ((Turn(role="user", text="a\ud800b"),), "bad_params"),
    ],
)
def test_text_that_cannot_be_kept_is_refused(draft, turns: tuple[Turn, ...], code: str) -> None:
    assert refusal(draft(turns=turns)).code == code
    assert not Generation.objects.exists()


def test_limits_of_the_plan_say_which_and_when(draft) -> None:
    bob = make_user("bob", concurrent=1, requests_per_minute=2)
    admission.accept(draft(user=bob))
    refused = refusal(draft(user=bob))
    assert (refused.code, refused.retry_after_s) == ("too_many_running", 2)
    Generation.objects.filter(user=bob).update(status="done")
    admission.accept(draft(user=bob))
    Generation.objects.filter(user=bob).update(status="done")
    refused = refusal(draft(user=bob))
    assert refused.code == "rate_limited"
    assert refused.retry_after_s is not None
    assert 50 < refused.retry_after_s <= 60
    assert "2 requests per minute" in refused.message


def test_a_day_that_is_used_up_is_refused_and_leaves_no_trace(draft) -> None:
    bob = make_user("bob", tokens_per_day=100)
    refused = refusal(draft(user=bob, params=Params(max_tokens=500)))
    assert refused.code == "quota_exceeded"
    assert "100 a day" in refused.message
    assert not Generation.objects.exists()
    assert not Reservation.objects.exists()
    assert not DailyUse.objects.filter(tokens_reserved__gt=0).exists()


def test_gpu_seconds_are_reserved_at_the_models_measured_pace(draft, server: redis.Redis) -> None:
    status = ModelStatus(
        model="demo", context_tokens=1000, vocabulary_sha256="", turn_tokens=4, slots=1, seconds_per_token=0.5,
        state="ready",
    )  # fmt: skip
    server.set(names.model_key("demo"), status.to_json())
    model_states.refresh("demo")
    admission.accept(draft(params=Params(max_tokens=40)))
    assert Reservation.objects.get().gpu_seconds == pytest.approx(20)


def test_a_message_longer_than_the_context_is_refused_before_it_is_stored(draft) -> None:
    ServedModel.objects.filter(slug="demo").update(context_tokens=50)
    assert refusal(draft(turns=(Turn(role="user", text="word " * 500),))).code == "context_too_long"
    history = (Turn(role="user", text="word " * 500), Turn(role="assistant", text="ok"), Turn(role="user", text="hi"))
    assert admission.accept(draft(turns=history)).is_new  # history is cut by the worker instead


def test_a_model_that_the_plan_does_not_allow_is_unknown(draft) -> None:
    other = make_user("bob")
    secret = ServedModel.objects.create(slug="secret", name="Secret")
    secret.plans.add(other.plan)
    assert refusal(draft(model="secret")).code == "model_unknown"
    assert refusal(draft(model="nonsense")).code == "model_unknown"
    assert admission.accept(draft(user=other, model="secret")).generation.model == "secret"


def test_a_missing_redis_loses_nothing(draft, settings, caplog, django_capture_on_commit_callbacks) -> None:
    from chatproject import redis_client

    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    redis_client.client.cache_clear()
    with django_capture_on_commit_callbacks(execute=True):
        accepted = admission.accept(draft())
    assert eventually(lambda: "waits for Redis" in caplog.text)
    assert Generation.objects.get(id=accepted.generation.id).status == "accepted"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": 3}, "temperature"), ({"temperature": float("nan")}, "temperature"),
        ({"temperature": True}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"), ({"seed": -1}, "seed"), ({"seed": 2**63}, "seed"),
        ({"stop": [""]}, "stop"), ({"stop": ["x"] * 17}, "stop"), ({"stop": {"a": 1}}, "stop"),
        ({"stop": ["a\x00"]}, "stop"), ({"best_of": 2}, "best_of"), ([], "object"),
        ({"min_p": 1.1}, "min_p"), ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"), ({"frequency_penalty": "2"}, "frequency_penalty"),
        ({"logit_bias": [5]}, "logit_bias"), ({"logit_bias": {"x": 1}}, "'x'"), ({"logit_bias": {"-1": 1}}, "'-1'"),
        ({"logit_bias": {"5": 1, "05": 1}}, "'05'"), ({"logit_bias": {"2147483648": 1}}, "2147483648"),
        ({"logit_bias": {"5": 101}}, "logit_bias"), ({"logit_bias": {"5": float("nan")}}, "logit_bias"),
        ({"logit_bias": {"5": True}}, "logit_bias"), ({"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, "1024"),
        ({"logprobs": 1}, "logprobs"),
    ],
)  # fmt: skip
def test_a_param_out_of_range_is_named(fields: object, named: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_params(fields)  # type: ignore[arg-type]
    assert caught.value.code == "bad_params"
    assert named in caught.value.message


def test_wishes_of_sampling_reach_the_request(draft) -> None:
    fields = {
        "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": 0, "frequency_penalty": -2,
        "logit_bias": {"7": -100, "3": 1.5}, "logprobs": 5,
    }  # fmt: skip
    accepted = admission.accept(draft(params=parse_params(fields, has_logprobs=True)))
    sampling = GenerationRequest.from_json(json.dumps(accepted.generation.request)).params
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.2)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.0, -2.0)
    assert sampling.logit_bias == ((3, 1.5), (7, -100.0))
    assert sampling.logprobs == 5


@pytest.mark.django_db(transaction=True)
def test_two_tabs_sending_the_same_message_at_once_make_one(draft) -> None:
    asked = draft()
    answers: list[admission.Accepted] = []
    start = threading.Barrier(4)

    def send() -> None:
        start.wait()
        try:
            answers.append(admission.accept(draft(client_id=asked.client_id, thread=asked.thread)))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({answer.generation.id for answer in answers}) == 1
    assert [answer.is_new for answer in answers].count(True) == 1
    assert Reservation.objects.count() == 1


def test_tokens_are_counted_once_and_the_count_is_of_that_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = context._tokenizer("")
    assert tokenizer is not None
    counted: list[str] = []

    class Tokenizer:
        def encode(self, text: str, *, add_special_tokens: bool) -> object:
            counted.append(text)
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(context, "_tokenizer", lambda directory: Tokenizer())
    monkeypatch.setattr(context, "_counts", {})
    monkeypatch.setattr(context, "MOST_COUNTS", 3)
    texts = ["Tell me about Mars", "It is red. " * 30, "\u0416\U0001f30d"]
    turns = [Turn(role="user", text=text) for text in texts]
    alone = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    for _ in range(3):
        assert context.count_tokens("", turns, turn_tokens=4) == sum(alone) + 4 * 4
    assert counted == texts
    context.count_tokens("", [Turn(role="user", text="one more")])
    assert len(context._counts) <= 3
