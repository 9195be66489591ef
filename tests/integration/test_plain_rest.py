"""The plain REST routes over the real processes: wait, ask again, stream, come back."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.stack import Stack, running

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stack]:
    with running(Path(tmp_path_factory.mktemp("stack")), redis_url, CHAT_FAKE_STEP_MS="10") as stack:
        yield stack


def client(stack: Stack, who: str = "alice") -> httpx.Client:
    return httpx.Client(base_url=stack.origin, headers={"X-API-Key": stack.cast[who].key}, timeout=60)


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with client(stack) as http:
        yield http


def short(message: str, **more: Any) -> dict[str, Any]:
    return {"message": message, "params": {"max_tokens": 10, "seed": 1}, **more}


def events(text: str) -> list[tuple[int | None, dict[str, Any]]]:
    """Return (id, data) of each event but [DONE]."""
    parsed = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields.get("data", "[DONE]") != "[DONE]":
            parsed.append((int(fields["id"]) if "id" in fields else None, json.loads(fields["data"])))
    return parsed


def test_chat_waits_for_the_answer_and_goes_on_in_its_conversation(http: httpx.Client) -> None:
    first = http.post("/chat", json=short("What is a lane?"))
    assert first.status_code == 200, first.text
    body = first.json()
    assert body["response"]
    assert body["processing_time"] > 0
    second = http.post("/chat", json=short("And then?", conversation_id=body["conversation_id"])).json()
    assert second["conversation_id"] == body["conversation_id"]
    assert second["usage"]["prompt_tokens"] > body["usage"]["prompt_tokens"]


def test_an_answer_may_be_asked_for_any_number_of_times(http: httpx.Client, stack: Stack) -> None:
    asked = http.post("/async-chat", json=short("later")).json()
    assert asked["status"] == "accepted"
    deadline = time.monotonic() + 20
    while (answer := http.get(asked["check_endpoint"])).status_code == 202:
        assert answer.json()["status"] in ("waiting", "running")
        assert time.monotonic() < deadline
    body = answer.json()
    assert (body["status"], body["reason"], body["correlation_id"]) == ("done", "length", asked["correlation_id"])
    assert http.get(asked["check_endpoint"]).json() == body
    with client(stack, "bob") as bob:
        assert bob.get(asked["check_endpoint"]).status_code == 404
        assert bob.get(f"/stream/{asked['correlation_id']}").status_code == 404


def test_a_stream_goes_on_after_the_last_event_seen_and_again_when_all_is_stored(http: httpx.Client) -> None:
    asked = http.post("/stream-chat", json=short("a story", params={"max_tokens": 40, "seed": 2})).json()
    whole = http.get(asked["stream_endpoint"])
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert whole.text.endswith("data: [DONE]\n\n")
    told = events(whole.text)
    assert told[-1][1]["done"]
    ids = [id_ for id_, _ in told[:-1]]
    assert ids == sorted(set(ids))
    cut = len(ids) // 2
    rest = events(http.get(asked["stream_endpoint"], headers={"Last-Event-ID": str(ids[cut])}).text)
    head = "".join(data["token"] for _, data in told[: cut + 1])
    text = http.get(f"/check-response/{asked['correlation_id']}").json()["response"]
    assert head + "".join(data["token"] for _, data in rest) == text
    assert "".join(data["token"] for _, data in told) == text
    assert http.get(asked["stream_endpoint"], headers={"Last-Event-ID": "x"}).status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({}, 400, "bad_params", "message"),
        ({"message": "  "}, 400, "empty_text", ""),
        ({"message": "x", "colour": "blue"}, 400, "bad_params", "colour"),
        ({"message": "x", "params": {"temperature": 9}}, 400, "bad_params", "temperature"),
        ({"message": "x", "conversation_id": str(uuid.uuid4())}, 404, "not_found", ""),
        ({"message": "x", "conversation_id": "nope"}, 400, "bad_params", "conversation"),
        ({"message": "x" * 40_000}, 400, "text_too_long", ""),
        ({"message": "x", "model": "gpt-9"}, 404, "model_unknown", "gpt-9"),
    ],
)
def test_a_refusal_names_what_is_wrong(http: httpx.Client, body: Any, status: int, code: str, says: str) -> None:
    answer = http.post("/chat", json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert says in answer.json()["message"]


def test_promised_routes_answer_and_keys_are_asked_for(http: httpx.Client, stack: Stack) -> None:
    health = http.get("/health").json()
    assert (health["status"], set(health["components"])) == ("healthy", {"database", "redis", "channel_layer"})
    assert http.get("/debug/queue-stats").status_code == 403
    assert httpx.post(f"{stack.origin}/chat", json={"message": "hi"}).status_code == 401


def test_staff_see_what_waits_and_who_serves(http: httpx.Client, stack: Stack) -> None:
    stack.sql("UPDATE accounts_user SET is_staff = 1 WHERE username = 'charlie'")
    http.post("/chat", json=short("hi"))
    with client(stack, "charlie") as charlie:
        (queue, *_) = charlie.get("/debug/queue-stats").json()["queues"]
    assert queue["queue"].startswith("generate.")
    assert queue["consumers"] == 1
    assert queue["lanes"] == {"vip": 0, "interactive": 0, "background": 0, "batch": 0}


def test_many_that_wait_do_not_hold_up_a_page(http: httpx.Client, stack: Stack) -> None:
    stack.sql("UPDATE accounts_plan SET concurrent = NULL, requests_per_minute = NULL")
    body = short("slow", params={"max_tokens": 300})

    def wait(n: int) -> int:
        with client(stack) as mine:
            return mine.post("/chat", json=body).status_code

    with ThreadPoolExecutor(24) as pool:
        waiting = [pool.submit(wait, n) for n in range(24)]
        accepted = "SELECT count(*) FROM generations_generation WHERE status = 'accepted'"
        while stack.sql(accepted) != [(24,)]:
            assert not any(each.done() for each in waiting), "they were to wait still"
        assert http.get("/accounts/login/").status_code == 200
        assert not any(each.done() for each in waiting), "they were to wait still"
        assert [each.result() for each in waiting] == [200] * 24


def test_conversations_are_made_listed_renamed_and_deleted(stack: Stack) -> None:
    with client(stack, "bob") as http:
        made = http.post("/api/conversations", json={"title": "Plans", "system_prompt": "Be brief."})
        assert made.status_code == 201, made.text
        id_ = made.json()["id"]
        sent = http.post("/send-message", json=short("What is a lane?", conversation_id=id_))
        assert (sent.status_code, sent.json()["status"], sent.json()["conversation_id"]) == (202, "sent", id_)
        other = http.post("/chat", json=short("Another one")).json()["conversation_id"]

        listed = http.get("/api/conversations").json()
        assert [each["id"] for each in listed["conversations"]] == [other, id_]
        first = http.get("/api/conversations", params={"limit": 1}).json()
        rest = http.get("/api/conversations", params={"limit": 1, "before": first["next"]}).json()
        assert [each["id"] for page in (first, rest) for each in page["conversations"]] == [other, id_]
        assert rest["next"] is None
        assert [each["id"] for each in http.get("/api/conversations?q=plans").json()["conversations"]] == [id_]

        assert http.patch(f"/api/conversations/{id_}", json={"title": "Lanes"}).json()["title"] == "Lanes"
        assert http.get(f"/api/conversations/{id_}").json()["title"] == "Lanes"
        assert http.delete(f"/api/conversations/{id_}").json() == {"deleted": id_}
        assert http.get(f"/api/conversations/{id_}").status_code == 404
        assert http.get(f"/check-response/{sent.json()['correlation_id']}").status_code == 404


def test_the_history_shows_what_was_asked_and_answered(http: httpx.Client, stack: Stack) -> None:
    told = http.post("/chat", json=short("What is a lane?")).json()
    path = f"/api/conversations/{told['conversation_id']}/messages"
    asked, answered = http.get(path).json()["messages"]
    assert (asked["role"], asked["text"]) == ("user", "What is a lane?")
    assert (answered["role"], answered["text"], answered["status"]) == ("assistant", told["response"], "done")
    assert answered["correlation_id"] == told["correlation_id"]
    assert answered["usage"]["completion_tokens"] == told["usage"]["completion_tokens"]
    with client(stack, "charlie") as stranger:
        assert stranger.get(path).status_code == 404
        assert stranger.delete(f"/api/conversations/{told['conversation_id']}").status_code == 404


@pytest.mark.parametrize(("method", "path", "body", "status", "says"), [
    ("POST", "", {"titel": "x"}, 400, "titel"),
    ("POST", "", {"title": 5}, 400, "title"),
    ("POST", "", {"title": "a\0b"}, 400, "title"),
    ("POST", "", {"system_prompt": "x" * 40_000}, 400, "system_prompt"),
    ("POST", "", {"model": "gpt-9"}, 404, "gpt-9"),
    ("PATCH", f"/{uuid.uuid4()}", {"title": "x"}, 404, ""),
    ("GET", "?limit=0", None, 400, "limit"),
    ("GET", "?before=yesterday", None, 400, "before"),
    ("GET", "/nope", None, 404, ""),
    ("GET", "/nope/messages", None, 404, ""),
    ("PUT", "", {}, 405, "GET or POST"),
    ("GET", "/a/b/c", None, 404, "/api/conversations/a/b/c"),
])  # fmt: skip
def test_a_wrong_request_for_conversations_is_told_what_to_do(
    http: httpx.Client, method: str, path: str, body: Any, status: int, says: str
) -> None:
    answer = http.request(method, f"/api/conversations{path}", json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["message"]
