"""The socket's own promises, with hub and database played by the test: what comes first, and what never comes."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chatproject.chat import consumers, identity
from chatproject.chat.errors import Refusal, Refused
from chatproject.chat.identity import Identity
from chatproject.chat.presence import Presence
from chatproject.chat.services import SendResult
from chatproject.contract.frames import Frame
from chatproject.generations.streaming.reader import Reader, State

ID = "0b0e3fe3-6d6b-4f2d-9c0b-0f3a2f6f7a01"
EARLIER = "1b0e3fe3-6d6b-4f2d-9c0b-0f3a2f6f7a02"

Write = Callable[[str], SendResult]


class EagerHub:
    """Has frames before the accept has returned: the worst order there can be."""

    def __init__(self) -> None:
        self.channel = ""  # not started yet
        self.readers: dict[str, Reader] = {}

    async def start(self) -> None:
        await asyncio.sleep(0)
        self.channel = "web.test"

    def expect(self, generation_id: str, reader: Reader) -> None:
        self.readers[generation_id] = reader
        reader.on_frames([Frame(generation_id=generation_id, run=1, seq=1, kind="started")])

    async def attach(self, generation_id: str, reader: Reader, *, after: int, owner_id: str | None = None) -> None:
        reader.on_state(State(generation_id=generation_id, thread=None, status="running", seq=1))
        self.expect(generation_id, reader)

    def detach(self, generation_id: str, reader: Reader) -> None:
        self.readers.pop(generation_id, None)

    def detach_all(self, reader: Reader) -> None:
        self.readers.clear()

    async def join_user(self, user_id: str, listener: Any) -> None: ...

    def leave_user(self, user_id: str, listener: Any) -> None: ...


@asynccontextmanager
async def connected(monkeypatch: pytest.MonkeyPatch, write: Write) -> AsyncIterator[tuple[EagerHub, Any, Any]]:
    """Yield (hub, say, hear) of a socket whose messages are accepted by ``write``."""

    def begin_in_thread(work: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        async def run() -> Any:
            await asyncio.sleep(0)
            return work(*args)

        return asyncio.ensure_future(run())

    hub, presence = EagerHub(), Presence(lost=lambda known: {})
    monkeypatch.setattr(consumers, "get_hub", lambda: hub)
    monkeypatch.setattr(consumers, "get_presence", lambda: presence)
    monkeypatch.setattr(consumers, "begin_in_thread", begin_in_thread)
    monkeypatch.setattr(consumers, "_send", lambda user_id, frame, generation_id, watcher: write(generation_id))
    monkeypatch.setattr(identity, "present", lambda scope: Identity(user_id="alice"))
    into: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    out: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def say(**fields: Any) -> None:
        await into.put({"type": "websocket.receive", "text": json.dumps(fields)})

    async def hear() -> dict[str, Any]:
        frame: dict[str, Any] = json.loads((await asyncio.wait_for(out.get(), 5))["text"])
        return frame

    await into.put({"type": "websocket.connect"})
    socket = asyncio.ensure_future(consumers.ChatConsumer()({"subprotocols": []}, into.get, out.put))
    assert (await out.get())["type"] == "websocket.accept"
    yield hub, say, hear
    await into.put({"type": "websocket.disconnect", "code": 1000})
    await asyncio.wait_for(socket, 5)
    assert hub.readers == {}


def accepted(generation_id: str, *, is_new: bool = True) -> SendResult:
    return SendResult(
        conversation_id="c", title="t", message_id="m", answer_id="a", generation_id=generation_id, is_new=is_new
    )


async def test_acceptance_comes_before_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch, accepted) as (_, say, hear):
        await say(type="send", id=ID, text="hello")
        assert [(await hear())["type"] for _ in range(2)] == ["accepted", "started"]


async def test_nothing_is_told_of_a_message_that_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(generation_id: str) -> SendResult:
        raise Refused(Refusal.QUOTA_EXCEEDED, "Tomorrow.", retry_after_s=9)

    async with connected(monkeypatch, refuse) as (hub, say, hear):
        await say(type="send", id=ID, text="hello")
        error = await hear()
        assert (error["type"], error["code"], error["id"], error["retry_after_s"]) == ("error", "quota_exceeded", ID, 9)
        assert hub.readers == {}
        await say(type="nothing")
        assert (await hear())["code"] == "bad_frame"


async def test_retry_is_told_the_earlier_answer_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch, lambda generation_id: accepted(EARLIER, is_new=False)) as (hub, say, hear):
        await say(type="send", id=ID, text="hello")
        told = [await hear() for _ in range(3)]
        assert [frame["type"] for frame in told] == ["accepted", "state", "started"]
        assert {frame["generation"] for frame in told} == {EARLIER}
        # Once more over the same socket: it is being told already.
        await say(type="send", id=ID, text="hello")
        assert (await hear())["type"] == "accepted"
        assert set(hub.readers) == {EARLIER}
        await say(type="nothing")
        assert (await hear())["type"] == "error"


async def test_database_that_is_away_is_an_answer_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(generation_id: str) -> SendResult:
        raise OSError(f"no database for {uuid.UUID(generation_id)}")

    async with connected(monkeypatch, fail) as (hub, say, hear):
        for _ in range(2):
            await say(type="send", id=ID, text="hello")
            error = await hear()
            assert (error["code"], error["id"]) == ("unavailable", ID)
            assert "database" not in error["message"]
        assert hub.readers == {}


async def test_frames_that_come_together_are_worked_on_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way: list[str] = []

    def write(generation_id: str) -> SendResult:
        under_way.append(generation_id)
        if len(under_way) == 1:
            raise Refused(Refusal.QUOTA_EXCEEDED, "Tomorrow.", retry_after_s=9)
        return accepted(generation_id)

    async with connected(monkeypatch, write) as (_, say, hear):
        ids = [str(uuid.uuid4()) for _ in range(3)]
        for client_id in ids:
            await say(type="send", id=client_id, text="hello")
        await say(type="nothing")
        told = [await hear() for _ in range(6)]
        assert [frame["type"] for frame in told] == ["error", "accepted", "started", "accepted", "started", "error"]
        assert [frame["id"] for frame in told if "id" in frame] == ids
        assert [frame["generation"] for frame in told if frame["type"] == "accepted"] == under_way[1:]


async def test_frames_before_the_user_is_known_wait_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    known = asyncio.Event()

    async def identify(self: Presence, scope: Any) -> Identity:
        await known.wait()
        return Identity(user_id="alice")

    monkeypatch.setattr(Presence, "identify", identify)
    async with connected(monkeypatch, accepted) as (hub, say, hear):
        for _ in range(2):
            await say(type="send", id=str(uuid.uuid4()), text="hello")
        await asyncio.sleep(0.01)
        assert not hub.readers
        known.set()
        assert [(await hear())["type"] for _ in range(4)] == ["accepted", "started"] * 2


async def test_frames_of_a_client_that_left_before_it_was_known_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    known = asyncio.Event()
    begun: list[str] = []

    async def identify(self: Presence, scope: Any) -> Identity:
        await known.wait()
        return Identity(user_id="alice")

    def write(generation_id: str) -> SendResult:
        begun.append(generation_id)
        return accepted(generation_id)

    monkeypatch.setattr(Presence, "identify", identify)
    async with connected(monkeypatch, write) as (hub, _, _):
        await hub.start()
        consumer = consumers.ChatConsumer()
        into: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        out: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        socket = asyncio.ensure_future(consumer({"subprotocols": []}, into.get, out.put))
        into.put_nowait({"type": "websocket.connect"})
        assert (await out.get())["type"] == "websocket.accept"
        consumer._hear({"type": "websocket.receive", "text": json.dumps({"type": "send", "id": ID, "text": "hello"})})
        consumer._hear({"type": "websocket.disconnect", "code": 1001})
        known.set()
        into.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await asyncio.wait_for(socket, 5)
        await asyncio.sleep(0.01)  # what was begun would go on without the socket
        assert begun == []
