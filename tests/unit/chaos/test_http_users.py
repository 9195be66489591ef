"""What a user of the HTTP interfaces makes of a service that breaks off, and of one that tells it wrong."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.chaos import asking
from tests.chaos.chats import Chat
from tests.chaos.history import History

Told = tuple[int, list[str]]  # status and lines; events without [DONE] break off


class Service:
    """Answers each request with the next answer, over real sockets."""

    def __init__(self, *answers: Told) -> None:
        self.answers, self.requests = list(answers), list[str]()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = head.partition("content-length: ")[2].partition("\r\n")[0]
        await reader.readexactly(int(length or 0))
        self.requests.append(head)
        status, lines = self.answers.pop(0)
        body = "".join(f"{line}\n" for line in lines)
        is_cut = lines[0].startswith(("id", "data")) and lines[-1] != "data: [DONE]"
        size = "transfer-encoding: chunked\r\n" if is_cut else ""
        body = f"{len(body.encode()):x}\r\n{body}\r\n" if is_cut else body  # a chunk, and no last one
        writer.write(f"HTTP/1.1 {status} X\r\nx-request-id: g\r\nconnection: close\r\n{size}\r\n{body}".encode())
        writer.close()


async def asks(tmp_path: Path, way: str, *answers: Told) -> tuple[Chat, Service]:
    chat = Chat(number=1, client_id="c", user="alice", text="hello", max_tokens=3, way=way)
    service = Service(*answers)
    async with await asyncio.start_server(service, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        cluster: Any = SimpleNamespace(urls=[url], users={"alice": "key"})
        user = asking.user_of(chat, cluster, History(tmp_path / "history.jsonl"), 1)
        user._leaves_after = None  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            await user.live()
    return chat, service


ACCEPTED: Told = (202, [json.dumps({"correlation_id": "g", "conversation_id": "t"})])


def events(*told: tuple[int, str], is_done: bool = False) -> Told:
    lines = [line for id_, text in told for line in (f"id: {id_}", _data({"token": text, "done": False}), "")]
    return 200, lines + (
        [_data({"token": "", "done": True, "reason": "length"}), "", "data: [DONE]"] if is_done else []
    )


def pieces(*texts: str, is_done: bool = False) -> Told:
    told = [_data({"choices": [{"delta": {"content": text}, "finish_reason": None}]}) for text in texts]
    end = [_data({"choices": [{"delta": {}, "finish_reason": "length"}]}), "data: [DONE]"] if is_done else []
    return 200, told + end


def _data(fields: dict[str, Any]) -> str:
    return "data: " + json.dumps(fields)


async def test_events_go_on_after_the_last_one_that_was_seen(tmp_path: Path) -> None:
    chat, service = await asks(
        tmp_path, "events", ACCEPTED, events((2, "a"), (3, "b")), events((4, "c"), is_done=True)
    )  # fmt: skip
    assert chat.view.text == "abc"
    assert chat.view.end == {"type": "finished", "reason": "length"}
    assert "last-event-id" not in service.requests[1]
    assert "last-event-id: 3" in service.requests[2]
    assert not chat.problems


async def test_an_event_that_comes_again_is_seen(tmp_path: Path) -> None:
    chat, _ = await asks(
        tmp_path, "events", ACCEPTED, events((2, "a"), (3, "b")), events((3, "b"), (4, "c"), is_done=True)
    )  # fmt: skip
    assert chat.problems == ["doubled: event 3 after 3"]


async def test_a_completion_is_asked_for_with_its_key_again_and_must_be_the_same(tmp_path: Path) -> None:
    chat, service = await asks(tmp_path, "completion_stream", pieces("ab"), pieces("a", "bc", is_done=True))
    assert all("idempotency-key: c\r\n" in request for request in service.requests)
    assert (chat.view.text, chat.view.replacements, chat.problems) == ("abc", 0, [])
    chat, _ = await asks(tmp_path, "completion_stream", pieces("ab"), pieces("xyz", is_done=True))
    assert (chat.view.text, chat.view.replacements) == ("xyz", 1)


async def test_a_refusal_that_mends_itself_is_no_last_word(tmp_path: Path) -> None:
    refused = (503, [json.dumps({"error": "queue_full", "message": "later"})])
    chat, service = await asks(tmp_path, "wait", refused, (200, [json.dumps({"response": "a", "reason": "length"})]))
    assert chat.refusals == ["queue_full"]
    assert chat.view.text == "a"
    assert len(service.requests) == 2


async def test_who_waited_and_is_told_of_a_failure_reads_what_is_stored(tmp_path: Path) -> None:
    failed = (503, [json.dumps({"error": "expired", "message": "too late"})])
    named = (202, [json.dumps({"status": "accepted", "correlation_id": "g", "conversation_id": "t"})])
    stored = (200, [json.dumps({"status": "expired", "response": "", "reason": None, "error": "expired"})])
    chat, service = await asks(tmp_path, "wait", failed, named, stored)
    assert (chat.generation, chat.refused) == ("g", "")
    assert chat.view.end == {"type": "failed", "reason": None}
    assert service.requests[2].startswith("get /check-response/g")


async def test_a_stream_that_says_it_restarts_is_read_on_elsewhere(tmp_path: Path) -> None:
    restarting = (
        200,
        [*events((2, "a"))[1], _data({"token": "", "done": True, "error": "restarting"}), "data: [DONE]"],
    )
    chat, service = await asks(tmp_path, "events", ACCEPTED, restarting, events((3, "b"), is_done=True))
    assert (chat.view.text, chat.problems) == ("ab", [])
    assert "last-event-id: 2" in service.requests[2]
