"""The real `openai` package against the real processes: what its users rely on, and what they are told."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.integration.stack import Stack, running

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]
ASK: list[Any] = [{"role": "user", "content": "What is a lane?"}]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stack]:
    with running(Path(tmp_path_factory.mktemp("stack")), redis_url, CHAT_FAKE_STEP_MS="10") as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.origin}/v1", api_key=stack.cast["alice"].key, max_retries=0) as client:
        yield client


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {stack.cast['alice'].key}"}
    with httpx.Client(base_url=stack.origin, headers=headers, timeout=30) as http:
        yield http


def test_an_answer_comes_whole_with_its_usage_and_is_what_was_stored(client: openai.OpenAI, stack: Stack) -> None:
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=12, seed=1)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.model == model
    id_ = answer.id.removeprefix("chatcmpl-").replace("-", "")
    found = stack.sql("SELECT status, answer, origin, thread FROM generations_generation WHERE id = ?", id_)
    assert found == [("done", answer.choices[0].message.content, "api", None)]
    assert client.models.retrieve(model).id == model


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": client.models.list().data[0].id, "messages": ASK, "max_tokens": 12, "seed": 7}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    said = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert said[0].delta.role == "assistant"
    assert "".join(part.delta.content or "" for part in said) == whole.choices[0].message.content
    assert len(said) > 4
    assert [part.finish_reason for part in said if part.finish_reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_text_completion_answers_the_prompt(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    whole = client.completions.create(model=model, prompt="What is a lane?", max_tokens=6, seed=3)
    chat = client.chat.completions.create(model=model, messages=ASK, max_tokens=6, seed=3)
    assert whole.choices[0].text == chat.choices[0].message.content
    chunks = client.completions.create(model=model, prompt=["What is a lane?"], max_tokens=6, seed=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_content_may_be_parts_and_the_developer_speaks_as_system(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a lane?"}]},
    ]
    model = client.models.list().data[0].id
    parts = client.chat.completions.create(model=model, messages=messages, max_tokens=4)
    assert parts.choices[0].message.content


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"extra_body": {"logprobs": 1}}, "logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 200}}, "logit_bias"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"extra_body": {"logit_bias": [1]}}, "logit_bias"),
        ({"extra_body": {"top_k": -1}}, "top_k"),
        ({"extra_body": {"min_p": 1.5}}, "min_p"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"temperature": "hot"}}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI, change: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(**{"model": "demo", "messages": ASK, **change})
    assert refusal.value.param == param
    assert param.split("[")[0] in refusal.value.message


def test_logprobs_come_with_every_token_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": client.models.list().data[0].id, "messages": ASK, "max_tokens": 12, "logprobs": True,
        "top_logprobs": 3, "presence_penalty": 0.5, "frequency_penalty": -2, "logit_bias": {"5": -100},
        "extra_body": {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
    }  # fmt: skip
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.logprobs is not None
    told = choice.logprobs.content or []
    assert len(told) == 12
    assert "".join(item.token for item in told) == choice.message.content
    for item in told:
        assert bytes(item.bytes or []).decode() == item.token
        assert item.top_logprobs[0].token == item.token
        assert len(item.top_logprobs) == 3
        assert item.logprob == item.top_logprobs[0].logprob < 0
    streamed = [
        item
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for item in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == told
    bare = client.chat.completions.create(**(asked | {"top_logprobs": None})).choices[0].logprobs
    assert bare is not None
    assert [item.top_logprobs for item in bare.content or []] == [[]] * 12
    plain = client.chat.completions.create(**(asked | {"logprobs": False, "top_logprobs": None})).choices[0]
    assert plain.logprobs is None


def test_a_text_completion_has_no_logprobs(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.completions.create(model="demo", prompt="hi", logprobs=1)


def test_unknown_fields_are_left_out(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model, messages=ASK, max_tokens=2, user="u", metadata={"a": "b"}, extra_body={"colour": "blue"}
    )
    assert answer.choices[0].message.content


def test_a_wrong_key_and_an_unknown_model_are_told_apart(client: openai.OpenAI, stack: Stack) -> None:
    with pytest.raises(openai.AuthenticationError, match="/settings"):
        client.with_options(api_key="sk-chat-wrong").models.list()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=ASK)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b"\xff", b'{"messages": NaN}', b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}",
     b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b" " * (3 * 1024 * 1024)],
)  # fmt: skip
def test_a_broken_body_is_an_error_in_shape(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/files", 501), ("POST", "/v1/batches", 501), ("GET", "/v1/engines", 404),
     ("GET", "/v1/chat/completions", 405), ("GET", "/v1/models/nope", 404)],
)  # fmt: skip
def test_every_address_under_v1_answers_in_shape(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_the_same_idempotency_key_is_answered_once(http: httpx.Client) -> None:
    key = str(uuid.uuid4())

    def post(text: str, **more: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
        return http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": key})

    first, again, stream = post("once"), post("once"), post("once", stream=True)
    assert first.json() == again.json()
    text = "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        for line in stream.text.splitlines()
        if line.startswith("data: {")
    )
    assert text == first.json()["choices"][0]["message"]["content"]
    assert stream.text.endswith("data: [DONE]\n\n")
    other = post("something else")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


@pytest.mark.parametrize("stream", [True, False])
async def test_who_hangs_up_stops_the_generation(stack: Stack, stream: bool) -> None:
    client = openai.AsyncOpenAI(base_url=f"{stack.origin}/v1", api_key=stack.cast["bob"].key, max_retries=0)
    async with client:
        asking = asyncio.ensure_future(_read(client, stream))
        live = "SELECT id FROM generations_generation WHERE status = 'accepted' AND origin = 'api'"
        await _until(lambda: bool(stack.sql(live)))
        (id_,) = stack.sql(live)[0]
        await asyncio.sleep(0.2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        status = "SELECT status FROM generations_generation WHERE id = ?"
        await _until(lambda: stack.sql(status, id_) == [("cancelled",)])


REVOKED = "UPDATE accounts_apikey SET revoked_at = {} WHERE prefix = '{prefix}'"
SWITCHED_OFF = "UPDATE accounts_user SET is_active = {} WHERE username = 'charlie'"


@pytest.mark.parametrize(("change", "lost", "good"), [(REVOKED, "'2026-01-01'", "NULL"), (SWITCHED_OFF, "0", "1")])
async def test_a_stream_ends_in_the_middle_when_its_right_ends(stack: Stack, change: str, lost: str, good: str) -> None:
    key = stack.cast["charlie"].key
    async with openai.AsyncOpenAI(base_url=f"{stack.origin}/v1", api_key=key, max_retries=0) as client:
        stream = await client.chat.completions.create(model="demo", messages=ASK, max_tokens=4000, stream=True)
        id_ = (await anext(stream)).id.removeprefix("chatcmpl-").replace("-", "")
        while not (await anext(stream)).choices[0].delta.content:
            pass
        stack.sql(change.format(lost, prefix=key[:14]))
        try:
            with pytest.raises(openai.APIError, match="not valid any more") as ended:
                await asyncio.wait_for(_to_the_end(stream), 15)
        finally:
            stack.sql(change.format(good, prefix=key[:14]))
    assert ended.value.code == "invalid_api_key"
    # Nobody else may read it.
    await _until(lambda: stack.sql("SELECT status FROM generations_generation WHERE id = ?", id_) == [("cancelled",)])


async def _read(client: openai.AsyncOpenAI, stream: bool) -> None:
    answer = await client.chat.completions.create(
        model="demo", messages=ASK, max_tokens=4000, stream=stream
    )  # fmt: skip
    if stream:
        await _to_the_end(answer)


async def _to_the_end(stream: Any) -> None:
    async for _ in stream:
        pass


async def _until(is_so: Any, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
