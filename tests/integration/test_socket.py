"""The chat socket over real processes: daphne, Redis, a worker with the fake engine, records."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.sockets import socket, whole_answer
from tests.integration.stack import Stack, running

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stack]:
    with running(Path(tmp_path_factory.mktemp("stack")), redis_url) as stack:
        yield stack


async def test_answer_comes_whole_in_order_and_is_what_was_stored(stack: Stack) -> None:
    async with socket(stack, "alice", subprotocols=["chat.v1"]) as alice:
        assert alice.connection.subprotocol == "chat.v1"
        client_id = await alice.send("What is a lane?", max_tokens=30)
        accepted = await alice.next("accepted")
        end = await alice.next("finished", "failed")
    assert set(accepted) == {"type", "id", "conversation", "message", "generation", "title", "answer"}
    assert (accepted["id"], accepted["title"]) == (client_id, "What is a lane?")
    numbered = alice.of(accepted["generation"])
    text = whole_answer(numbered)
    # Nothing of a generation before its acceptance.
    assert alice.seen.index(accepted) < alice.seen.index(numbered[0])
    assert (end["reason"], end["usage"]["completion_tokens"]) == ("length", 30)
    found = stack.sql("SELECT status, answer FROM generations_generation WHERE id = ?", _hex(accepted["generation"]))
    assert found == [("done", text)]


async def test_same_message_over_a_new_socket_is_answered_once_and_told_from_its_beginning(stack: Stack) -> None:
    async with socket(stack, "alice") as first:
        client_id = await first.send("only once", max_tokens=40)
        accepted = await first.next("accepted")
    async with socket(stack, "alice") as second:
        await second.send("only once", max_tokens=40, id=client_id)
        assert await second.next("accepted") == accepted
        await second.next("finished")
        await second.send("something else", max_tokens=40, id=client_id)
        assert await second.refused() == "id_reused"
        assert second.seen[-1]["id"] == client_id
    numbered = [frame for frame in second.of(accepted["generation"]) if frame["type"] != "state"]
    whole_answer(numbered)


async def test_second_tab_resumes_from_last_seq(stack: Stack) -> None:
    async with socket(stack, "alice") as first, socket(stack, "alice", by="key") as second:
        await first.send("a long story", max_tokens=120)
        generation = (await first.next("accepted"))["generation"]
        third = await first.until(lambda frame: frame.get("seq") == 3 and frame["type"] == "delta")
        await second.say(type="resume", generation=generation, after=3)
        state = await second.next("state")
        assert state["status"] == "running"
        await asyncio.gather(first.next("finished"), second.next("finished"))
        rest = [frame for frame in second.of(generation) if frame["type"] != "state"]
        assert rest == [frame for frame in first.of(generation) if frame["seq"] > third["seq"]]
        whole_answer(first.of(generation))


async def test_stop_ends_the_answer_and_keeps_it(stack: Stack) -> None:
    async with socket(stack, "alice") as alice:
        await alice.send("never ending", max_tokens=4000)
        accepted = await alice.next("accepted")
        await alice.next("delta")
        await alice.say(type="stop", generation=accepted["generation"])
        end = await alice.next("finished", "failed")
        assert end["reason"] == "cancelled"
        whole_answer(alice.of(accepted["generation"]))
        # The conversation is free again, and a stop that comes late does nothing.
        await alice.say(type="stop", generation=accepted["generation"])
        await alice.send("and now?", conversation=accepted["conversation"])
        again = await alice.next("accepted", "error")
        assert again["type"] == "accepted"
        await alice.next("finished")


async def test_edit_and_regenerate_take_the_place_of_what_was(stack: Stack) -> None:
    async with socket(stack, "alice") as alice:
        await alice.send("first words")
        first = await alice.next("accepted")
        await alice.next("finished")
        await alice.say(
            type="regenerate", id=str(uuid.uuid4()), generation=first["generation"], params={"max_tokens": 4}
        )
        second = await alice.next("accepted")
        assert (second["message"], second["conversation"]) == (first["message"], first["conversation"])
        await alice.next("finished")
        await alice.send("better words", conversation=first["conversation"], replaces=first["message"])
        third = await alice.next("accepted")
        assert third["conversation"] == first["conversation"]
        await alice.next("finished")
    kept = "SELECT text FROM chat_message WHERE conversation_id = ? AND NOT is_superseded AND role = 'user'"
    assert stack.sql(kept, _hex(first["conversation"])) == [("better words",)]


async def test_busy_conversation_says_so(stack: Stack) -> None:
    async with socket(stack, "alice") as alice:
        await alice.send("one", max_tokens=400)
        accepted = await alice.next("accepted")
        client_id = await alice.send("two", conversation=accepted["conversation"])
        assert await alice.refused() == "conversation_busy"
        assert alice.seen[-1]["id"] == client_id
        await alice.say(type="stop", generation=accepted["generation"])
        await alice.next("finished")


async def test_notice_reaches_every_socket_of_the_user_and_no_other(stack: Stack) -> None:
    async with socket(stack, "alice") as sender, socket(stack, "alice") as tab, socket(stack, "bob") as bob:
        for each in (tab, bob):
            # An error proves that the socket is past its signing in and joining.
            await each.say(type="nothing")
            await each.next("error")
        await sender.send("hello from another tab")
        accepted = await sender.next("accepted")
        for status in ("accepted", "done"):
            notice = await tab.until(lambda frame, status=status: frame.get("status") == status)
            assert notice == {
                "type": "notice", "conversation": accepted["conversation"], "generation": accepted["generation"],
                "status": status,
            }  # fmt: skip
        assert not tab.of(accepted["generation"])
        await bob.say(type="nothing")
        await bob.next("error")
        assert {frame["type"] for frame in bob.seen} == {"error"}


async def test_two_users_do_not_see_each_other(stack: Stack) -> None:
    async with socket(stack, "alice") as alice, socket(stack, "bob") as bob:
        await alice.send("secret", max_tokens=300)
        accepted = await alice.next("accepted")
        generation, conversation = accepted["generation"], accepted["conversation"]
        for frame in (
            {"type": "resume", "generation": generation, "after": 0},
            {"type": "stop", "generation": generation},
            {"type": "regenerate", "id": str(uuid.uuid4()), "generation": generation},
            {"type": "send", "id": str(uuid.uuid4()), "conversation": conversation, "text": "let me in"},
        ):
            await bob.say(**frame)
            assert await bob.refused() == "not_found"
        await alice.next("finished")
        assert all(frame["type"] == "error" for frame in bob.seen)
        assert alice.seen[-1]["reason"] == "length"


def _send(**fields: Any) -> str:
    return json.dumps({"type": "send", "id": str(uuid.uuid4()), "text": "hello"} | fields)


MALFORMED: list[tuple[str | bytes, str]] = [
    (b"\x00\x01", "bad_frame"),
    ("", "bad_frame"),
    ("{", "bad_frame"),
    ("[]", "bad_frame"),
    ("[" * 60_000, "bad_frame"),
    ("{}", "bad_frame"),
    ('{"type":"dance"}', "bad_frame"),
    ('{"type":["send"]}', "bad_frame"),
    ('{"type":"stop","generation":NaN}', "bad_frame"),
    ('{"type":"resume","after":' + "9" * 5000 + "}", "bad_frame"),
    ('{"type":"stop","type":"stop"}', "bad_frame"),
    ("x" * 70_000, "bad_frame"),
    (_send(text="x" * 40_000), "text_too_long"),
    (_send(text=" \n\u200b"), "empty_text"),
    (_send(text="nul \x00"), "bad_params"),
    (_send(text="half \ud83d"), "bad_params"),
    (_send(text=7), "bad_params"),
    (_send(id="UPPER"), "bad_params"),
    (_send(surprise=1), "bad_params"),
    (_send(**{"\ud83d": 1}), "bad_params"),
    (_send(params={"temperature": "hot"}), "bad_params"),
    (_send(params={"temprature": 1}), "bad_params"),
    (_send(conversation="nonsense"), "bad_params"),
    (_send(conversation=str(uuid.uuid4())), "not_found"),
    (_send(model="no-such-model"), "model_unknown"),
    (json.dumps({"type": "resume", "generation": str(uuid.uuid4()), "after": -1}), "bad_cursor"),
    (json.dumps({"type": "resume", "generation": str(uuid.uuid4()), "after": 0}), "not_found"),
    (json.dumps({"type": "stop", "generation": str(uuid.uuid4())}), "not_found"),
]


async def test_malformed_frames_of_every_kind_leave_the_socket_open(stack: Stack) -> None:
    before = stack.sql("SELECT count(*) FROM generations_generation")
    for start in range(0, len(MALFORMED), 20):  # below the flood limit of one socket
        async with socket(stack, "bob") as bob:
            for text, code in MALFORMED[start : start + 20]:
                await bob.connection.send(text)
                assert (await bob.refused(), str(text)[:60]) == (code, str(text)[:60])
                assert bob.seen[-1]["message"].endswith((".", "!"))
            assert stack.sql("SELECT count(*) FROM generations_generation") == before
            await bob.send("still here")
            assert (await bob.next("accepted", "error"))["type"] == "accepted"
            await bob.next("finished")
            before = stack.sql("SELECT count(*) FROM generations_generation")


def _hex(id_: str) -> str:
    return uuid.UUID(id_).hex
