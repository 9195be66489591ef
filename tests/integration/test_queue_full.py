"""A full queue as clients meet it: the socket's `error`, 503 with `retry-after` on both APIs, and nothing is kept."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.integration.sockets import socket
from tests.integration.stack import running

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]


async def test_every_door_says_that_the_queue_is_full_and_when_to_come_back(
    tmp_path: Path, fresh_redis_url: str
) -> None:
    with running(tmp_path, fresh_redis_url, with_worker=False, QUEUE_MAX_WAITING="2") as stack:
        async with socket(stack, "alice") as alice:
            for _ in range(2):
                await alice.send()
                assert (await alice.next("accepted", "error"))["type"] == "accepted"
            client_id = await alice.send()
            error = await alice.next("accepted", "error")
            assert (error["type"], error["code"], error["id"]) == ("error", "queue_full", client_id)
            assert error["retry_after_s"] > 0
        headers = {"Authorization": f"Bearer {stack.cast['bob'].key}"}
        async with httpx.AsyncClient(base_url=stack.origin, headers=headers, timeout=60) as bob:
            plain = await bob.post("/async-chat", json={"message": "hello"})
            assert (plain.status_code, plain.json()["error"]) == (503, "queue_full")
            assert plain.json()["retry_after_s"] > 0
            messages = [{"role": "user", "content": "hello"}]
            openai = await bob.post("/v1/chat/completions", json={"model": "demo", "messages": messages})
            assert (openai.status_code, openai.json()["error"]["code"]) == (503, "queue_full")
            assert int(openai.headers["retry-after"]) > 0
        assert stack.sql("SELECT count(*) FROM generations_generation") == [(2,)]
        assert stack.sql("SELECT count(*) FROM accounts_reservation") == [(2,)]
        assert stack.sql("SELECT count(*) FROM chat_conversation") == [(2,)]
        assert stack.sql("SELECT sum(generations) FROM accounts_dailyuse") == [(2,)]
