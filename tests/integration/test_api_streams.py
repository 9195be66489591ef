"""Streams of the API whose answer is long, or long in coming, over real processes without a worker."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.stack import Stack, running
from tests.servers import wait_until

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]

STORED = """
from django.utils import timezone
from chatproject.accounts.models import User
from chatproject.generations.models import Generation
print(Generation.objects.create(
    user=User.objects.get(username="alice"), client_id="long", body_sha256="", model="demo", lane="interactive",
    request={}, status="done", expires_at=timezone.now(), answer="~" * 600_000, reason="stop", end_seq=3,
).id)
"""
# What a worker sends to the web processes that watch, without a log: 600 frames of 50 KB in some 10 s.
FRAMES = """
import time, redis
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.conf import settings
from chatproject.contract import names
from chatproject.contract.frames import Frame, channel_message

async def tell(id_, channel):
    layer = get_channel_layer()
    await layer.send(channel, channel_message([Frame(id_, 1, 1, "started")]))
    for n in range(600):
        frame = Frame(id_, 1, n + 2, "delta", n * 50_000, "y" * 50_000)
        await layer.send(channel, channel_message([frame]))
        time.sleep(0.015)

(channel,) = redis.Redis.from_url(settings.REDIS_URL, decode_responses=True).zrange(names.watch_key(ID), 0, -1)
async_to_sync(tell)(ID, channel)
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stack]:
    with running(Path(tmp_path_factory.mktemp("stack")), redis_url, with_worker=False) as stack:
        yield stack


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.origin, headers={"X-API-Key": stack.cast["alice"].key}, timeout=30) as http:
        yield http


def ask(http: httpx.Client) -> dict[str, Any]:
    asked: dict[str, Any] = http.post("/stream-chat", json={"message": "Is anybody there?"}).json()
    return asked


@contextlib.contextmanager
def unread(stack: Stack, path: str) -> Iterator[socket.socket]:
    """A stream that was asked for, of which little fits into the client's kernel."""
    with socket.socket() as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.settimeout(30)
        connected.connect(("127.0.0.1", stack.port))
        key = stack.cast["alice"].key
        connected.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\n\r\n".encode())
        yield connected


def read_all(connected: socket.socket, *, at_once: int = 1 << 16, pause_s: float = 0) -> bytes:
    """Read until the last chunk, or until the connection is lost."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while not found.endswith(b"\r\n0\r\n\r\n") and (more := connected.recv(at_once)):
            found += more
            time.sleep(pause_s)
    return found


def test_a_stream_answers_before_there_is_anything_to_tell(http: httpx.Client) -> None:
    with http.stream("GET", ask(http)["stream_endpoint"], timeout=8) as stream:
        assert stream.status_code == 200


def test_who_reads_slowly_gets_the_whole_answer(stack: Stack) -> None:
    generation = stack.python(STORED).split()[-1]
    with unread(stack, f"/stream/{generation}") as connected:
        time.sleep(1)  # all that fits is on its way
        told = read_all(connected, at_once=16_384, pause_s=0.01)
    assert told.count(b"~") == 600_000
    assert told.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_who_never_reads_is_cut_off(stack: Stack, http: httpx.Client) -> None:
    """Thirty megabytes are told to it: the process does not keep them."""
    asked = ask(http)
    with http.stream("GET", asked["stream_endpoint"]):  # all that is loaded once is loaded
        before = stack.memory_bytes("web")
    with unread(stack, asked["stream_endpoint"]) as connected, ThreadPoolExecutor(1) as pool:
        assert connected.recv(1), "it has begun"
        telling, most = pool.submit(stack.python, f"ID = {asked['correlation_id']!r}\n{FRAMES}"), 0
        while not telling.done():
            most = max(most, stack.memory_bytes("web") - before)
            time.sleep(0.05)
        telling.result()
        assert most < 16_000_000
        assert len(read_all(connected)) < 3_000_000


def test_a_stream_ends_with_a_word_when_its_key_is_revoked(stack: Stack, http: httpx.Client) -> None:
    key = stack.cast["bob"].key
    with httpx.Client(base_url=stack.origin, headers={"X-API-Key": key}, timeout=30) as bob:
        asked = {"bob": ask(bob), "alice": ask(http)}
        with (
            bob.stream("GET", asked["bob"]["stream_endpoint"]) as stream,
            http.stream("GET", asked["alice"]["stream_endpoint"], timeout=4) as other,
        ):  # fmt: skip
            stack.sql("UPDATE accounts_apikey SET revoked_at = '2026-01-01' WHERE prefix = ?", key[:14])
            assert error_of(stream) == "invalid_api_key"
            with pytest.raises(httpx.ReadTimeout):  # hers is looked at, too, and goes on
                error_of(other)


def test_one_user_cannot_take_all_streams(stack: Stack, http: httpx.Client) -> None:
    charlie = httpx.Client(
        base_url=stack.origin, headers={"X-API-Key": stack.cast["charlie"].key}, timeout=60,
        limits=httpx.Limits(max_connections=None),
    )  # fmt: skip
    with charlie:
        path = ask(charlie)["stream_endpoint"]
        with contextlib.ExitStack() as open_:
            for _ in range(200):
                assert open_.enter_context(charlie.stream("GET", path)).status_code == 200
            refused = charlie.get(path)
            assert (refused.status_code, refused.json()["error"]) == (429, "rate_limited")
            assert int(refused.headers["retry-after"]) >= 1
            body = {"messages": [{"role": "user", "content": "One more?"}], "stream": True}
            refused = charlie.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            with http.stream("GET", ask(http)["stream_endpoint"]) as other:
                assert other.status_code == 200
    with httpx.Client(base_url=stack.origin, headers=charlie.headers, timeout=30) as again:
        wait_until(lambda: is_served(again, path), 20)


def test_a_restart_ends_streams_with_a_word(stack: Stack, http: httpx.Client) -> None:
    with http.stream("GET", ask(http)["stream_endpoint"]) as stream:
        stack.processes["web"].terminate()
        assert error_of(stream) == "restarting"
    assert stack.processes["web"].wait(15) == 0
    stack.start("web")
    stack.wait_for_web()


def error_of(stream: httpx.Response) -> str:
    """Read a stream to its end; return the error that it ends with."""
    *_, last, done = [line for line in stream.iter_lines() if line.startswith("data: ")]
    assert done == "data: [DONE]"
    error: str = json.loads(last.removeprefix("data: "))["error"]
    return error


def is_served(client: httpx.Client, path: str) -> bool:
    with client.stream("GET", path) as stream:
        return stream.status_code == 200
