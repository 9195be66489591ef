"""Readers whose log is gone: the row tells the answer, numbered as promised, or that there is none any more."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from chatproject.contract import names
from chatproject.contract.frames import Frame
from tests.integration.sockets import Client, socket
from tests.integration.stack import Stack, running

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]

ANSWER = "What nobody saw."


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stack]:
    with running(Path(tmp_path_factory.mktemp("stack")), redis_url, with_worker=False) as stack:
        yield stack


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


async def test_what_was_stored_unseen_comes_whole_and_only_the_end_follows(stack: Stack) -> None:
    async with socket(stack, "alice") as alice:
        generation = await accepted(alice)
        stack.sql(
            "UPDATE generations_generation SET status='done', reason='stop', answer=?, end_seq=9, sha256=? WHERE id=?",
            ANSWER, hashlib.sha256(ANSWER.encode()).hexdigest(), uuid.UUID(generation).hex,
        )  # fmt: skip
        await alice.next("finished")
        state, end = alice.of(generation)
    assert (state["type"], state["text"], state["seq"]) == ("state", ANSWER, 8)
    assert (end["type"], end["seq"], end["sha256"]) == ("finished", 9, hashlib.sha256(ANSWER.encode()).hexdigest())


async def test_reader_hears_the_end_that_redis_has_forgotten(stack: Stack, server: redis.Redis) -> None:
    """Redis began again from a second before the end: the log goes on for ever, and nobody writes it any more."""
    async with socket(stack, "alice") as alice:
        generation = await accepted(alice)
        log(server, generation, "What nobody ")
        await alice.next("delta")
        stack.sql(
            "UPDATE generations_generation SET status='done', reason='stop', answer=?, end_seq=4, sha256=? WHERE id=?",
            ANSWER, hashlib.sha256(ANSWER.encode()).hexdigest(), uuid.UUID(generation).hex,
        )  # fmt: skip
        end = await alice.next("finished")
        state = next(frame for frame in alice.seen if frame["type"] == "state")
    assert (state["text"], state["seq"]) == (ANSWER, 3)
    assert (end["seq"], end["sha256"]) == (4, hashlib.sha256(ANSWER.encode()).hexdigest())


async def test_reader_in_the_middle_is_told_that_the_answer_was_deleted(stack: Stack, server: redis.Redis) -> None:
    async with socket(stack, "alice") as alice:
        generation = await accepted(alice)
        log(server, generation, "Half")
        await alice.next("delta")
        stack.sql("DELETE FROM generations_generation WHERE id=?", uuid.UUID(generation).hex)
        server.delete(names.log_key(generation))
        end = await alice.next("finished", "failed")
    assert (end["type"], end["reason"], end["seq"]) == ("finished", "cancelled", 3)


def log(server: redis.Redis, generation: str, text: str) -> None:
    """Write the log of a run that has shown this."""
    key = names.log_key(generation)
    server.xadd(key, {"k": "start"}, id="1-0")
    for seq, kind, shown in ((1, "started", ""), (2, "delta", text)):
        frame = Frame(generation_id=generation, run=1, seq=seq, kind=kind, text=shown)  # type: ignore[arg-type]
        server.xadd(key, frame.entry(), id=f"1-{seq}")  # type: ignore[arg-type]


async def accepted(client: Client) -> str:
    await client.send("Is anybody there?")
    generation: str = (await client.next("accepted"))["generation"]
    return generation
