"""API readers whose log was lost, with its worker: what they hold in the end is what is stored, or they are told."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.integration.stack import Stack, running
from tests.integration.told_worker import ToldWorker, newest_generation

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]
ASK = {"messages": [{"role": "user", "content": "What is a lane?"}]}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stack]:
    with running(Path(tmp_path_factory.mktemp("stack")), redis_url, with_worker=False) as stack:
        yield stack


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {stack.cast['alice'].key}"}
    async with httpx.AsyncClient(base_url=stack.origin, headers=headers, timeout=60) as http:
        yield http


class Stream:
    """A stream that is read: its events, and the text that a client makes of them."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.events: list[dict[str, Any]] = []
        self.text = ""
        self.is_done = False

    async def until(self, text: str) -> None:
        """Read until the client holds ``text``."""
        while self.text != text:
            assert await self.next(), f"it ended with {self.text!r}"

    async def to_the_end(self) -> dict[str, Any]:
        """Return the last event before [DONE]."""
        while await self.next():
            pass
        assert self.is_done
        return self.events[-1]

    async def next(self) -> bool:
        async with asyncio.timeout(20):
            async for line in self._lines:
                if line == "data: [DONE]":
                    self.is_done = True
                elif line.startswith("data: "):
                    self._take(json.loads(line.removeprefix("data: ")))
                    return True
        return False

    def _take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event.get("replace"):
            self.text = ""
        for choice in event.get("choices", ()):
            self.text += choice["delta"].get("content", "")
        self.text += event.get("token", "")


@contextlib.asynccontextmanager
async def reading(http: httpx.AsyncClient, generation: str, *, after: int = 0) -> AsyncIterator[Stream]:
    headers = {"Last-Event-ID": str(after)} if after else {}
    async with http.stream("GET", f"/stream/{generation}", headers=headers) as response:
        assert response.status_code == 200
        yield Stream(response)


@contextlib.asynccontextmanager
async def completing(http: httpx.AsyncClient, key: str) -> AsyncIterator[Stream]:
    body, headers = {**ASK, "stream": True}, {"Idempotency-Key": key}
    async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status_code == 200
        yield Stream(response)


STORIES = {
    "written anew": (["Half ", "of it"], ["Other ", "words"], [" to the end."], False),
    "the same again": (["One, ", "two, ", "three, "], ["One, "], ["two, ", "three, four."], True),
    "as long, and different": (["You may ", "go"], ["You can ", "go"], [" now."], False),
}


@pytest.mark.parametrize("story", STORIES)
async def test_what_a_reader_holds_in_the_end_is_what_is_stored_or_it_is_told(
    stack: Stack, server: redis.Redis, http: httpx.AsyncClient, story: str
) -> None:
    first, anew, rest, goes_on = STORIES[story]
    key = str(uuid.uuid4())
    whole = asyncio.ensure_future(http.post("/v1/chat/completions", json=ASK, headers={"Idempotency-Key": key}))
    waiting = asyncio.ensure_future(http.post("/chat", json={"message": "What is a lane?"}))
    v1 = ToldWorker(server, stack, await asyncio.to_thread(newest_generation, stack, origin="api"))
    chat = ToldWorker(server, stack, await asyncio.to_thread(newest_generation, stack, origin="chat"))
    async with (
        completing(http, key) as stream, reading(http, v1.generation_id) as plain,
        reading(http, chat.generation_id) as beside,
    ):  # fmt: skip
        for worker in (v1, chat):
            worker.begin()
            worker.tell(*first)
        for each in (stream, plain, beside):
            await each.until("".join(first))
        async with reading(http, v1.generation_id, after=2) as late:
            await late.until("".join(first[1:]))
            for worker in (v1, chat):
                worker.begin()
                worker.tell(*anew)
            if story == "as long, and different":
                await asyncio.sleep(2.5)  # the hub looks and sees nothing new
            else:
                await beside.until("".join(anew))
            for worker in (v1, chat):
                worker.tell(*rest)
                worker.end()
            for each in (plain, late, beside):
                end = await each.to_the_end()
                assert each.text == v1.text
                assert end["reason"] == "stop"
                assert end["sha256"] == hashlib.sha256(each.text.encode()).hexdigest()
            end = await stream.to_the_end()
    assert (await waiting).json()["response"] == chat.text
    assert (await whole).json()["choices"][0]["message"]["content"] == v1.text
    if goes_on:
        assert stream.text == v1.text
        assert end["choices"][0]["finish_reason"] == "stop"
    else:
        assert end["error"]["code"] == "replaced"
        assert ("".join(first) + "".join(rest)).startswith(stream.text), "two answers were mixed"


async def test_who_asks_again_with_the_same_key_gets_the_answer_that_was_replaced(
    stack: Stack, server: redis.Redis, http: httpx.AsyncClient
) -> None:
    key = str(uuid.uuid4())
    async with completing(http, key) as stream:
        worker = ToldWorker(server, stack, await asyncio.to_thread(newest_generation, stack, origin="api"))
        worker.begin()
        worker.tell("Half of it")
        await stream.until("Half of it")
        worker.begin()
        worker.tell("Other words")
        assert (await stream.to_the_end())["error"]["code"] == "replaced"
    asking = asyncio.ensure_future(http.post("/v1/chat/completions", json=ASK, headers={"Idempotency-Key": key}))
    worker.end()
    assert (await asking).json()["choices"][0]["message"]["content"] == "Other words"
