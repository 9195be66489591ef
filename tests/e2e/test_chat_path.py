"""A message's whole way through the real processes: daphne, Redis, Celery, engine, records, database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import uuid
from collections.abc import Callable

import httpx
import pytest
import redis
from websockets.exceptions import WebSocketException

from tests.e2e.conftest import Running
from tests.e2e.socket_client import ChatSocket, Heard

pytestmark = [pytest.mark.e2e, pytest.mark.needs("redis"), pytest.mark.timeout(180)]
NUM_SOCKETS = 20
ANSWER_TOKENS = 300  # long enough that all run at once, even on a machine that is busy with other things


@pytest.fixture
def server(service: Running) -> redis.Redis:
    return redis.Redis.from_url(service.service.state["redis"], decode_responses=True)


def worker_status(server: redis.Redis) -> dict[str, float]:
    return json.loads(server.get("worker:w1") or "{}")


async def eventually(is_so: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so"
        await asyncio.sleep(0.05)


def stored(service: Running, heard: Heard) -> dict[str, object]:
    answer = httpx.get(f"{service.url}/check-response/{heard.id}", headers={"Authorization": f"Bearer {service.key()}"})
    assert answer.status_code == 200, answer.text
    body: dict[str, object] = answer.json()
    return body


def metrics_page(service: Running) -> str:
    return httpx.get(f"{service.url}/metrics").text


async def test_twenty_sockets_are_batched_and_each_answer_is_whole(service: Running, server: redis.Redis) -> None:
    before = worker_status(server)
    sockets = [ChatSocket(service.url, service.key()) for _ in range(NUM_SOCKETS)]
    await asyncio.gather(*(socket.__aenter__() for socket in sockets))
    heard = await asyncio.gather(
        *(socket.ask(f"question {index}", max_tokens=ANSWER_TOKENS, seed=index) for index, socket in enumerate(sockets))
    )
    await asyncio.gather(*(socket.__aexit__(None, None, None) for socket in sockets))
    assert len({each.text for each in heard}) == NUM_SOCKETS
    for each in heard:
        assert each.end["type"] == "finished"
        assert each.end["reason"] == "length"
        assert each.end["usage"]["completion_tokens"] == ANSWER_TOKENS
        assert stored(service, each)["response"] == each.text
    await eventually(lambda: worker_status(server)["tokens"] >= before["tokens"] + ANSWER_TOKENS * NUM_SOCKETS)
    after = worker_status(server)
    rows = after["rows_per_step"] * after["decode_steps"] - before["rows_per_step"] * before["decode_steps"]
    assert rows / (after["decode_steps"] - before["decode_steps"]) >= 10


async def test_the_worker_accounts_for_its_time(service: Running, server: redis.Redis) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        heard = await socket.ask("account for it", max_tokens=50, seed=1)
    usage = heard.end["usage"]
    assert usage["mean_rows"] >= 1
    assert usage["kv_blocks"] > 3
    assert usage["tokens_per_s"] > 0

    def adds_up() -> bool:
        said = worker_status(server)
        # A step or a wait that has just ended may not be in its sum yet.
        parts_s, up_s = said["load_s"] + said["busy_s"] + said["idle_s"], said["up_s"]
        return up_s > 20 and abs(up_s - parts_s) <= 0.005 * up_s

    await eventually(adds_up, timeout_s=60)
    page = metrics_page(service)
    assert 'chat_worker_seconds_total{kind="idle",slot="w1"}' in page
    assert "chat_tokens_per_second_count" in page


async def test_stop_ends_an_answer_within_steps_and_frees_its_place(service: Running, server: redis.Redis) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        heard = await socket.send("a long story", max_tokens=3000)
        await socket.hear(heard, until=5)
        await socket.put(type="stop", generation=heard.id)
        asked_at = time.monotonic()
        await socket.hear(heard)
        assert time.monotonic() - asked_at < 3
    assert (heard.end["type"], heard.end["reason"]) == ("finished", "cancelled")
    body = stored(service, heard)
    assert body["response"] == heard.text
    assert 0 < heard.end["usage"]["completion_tokens"] < 3000
    await eventually(lambda: worker_status(server)["running"] == 0)


async def test_stop_before_the_start_takes_it_out_of_the_queue(service: Running) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        heard = await socket.send("never mind", max_tokens=500)
        await socket.put(type="stop", generation=heard.id)
        await socket.hear(heard)
    assert heard.end["reason"] == "cancelled"


async def test_a_new_socket_resumes_in_the_middle_without_gap_or_repeat(service: Running) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        heard = await socket.send("tell me everything", max_tokens=150)
        await socket.hear(heard, until=6)
    async with ChatSocket(service.url, service.key()) as socket:
        await socket.put(type="resume", generation=heard.id, after=heard.seq)
        state = await socket.get("state")
        assert state["status"] == "running"
        assert state["seq"] >= heard.seq
        assert state["conversation"] == heard.accepted["conversation"]
        await socket.hear(heard)
    assert stored(service, heard)["response"] == heard.text


async def test_a_second_tab_hears_of_the_message_and_reads_along(service: Running) -> None:
    async with ChatSocket(service.url, service.key()) as first, ChatSocket(service.url, service.key()) as second:
        await asyncio.sleep(0.3)  # the second socket joins its user's notices while it is being greeted
        heard = await first.send("for both tabs", max_tokens=60)
        notice = await second.get("notice")
        assert (notice["generation"], notice["status"]) == (heard.id, "accepted")
        await second.put(type="resume", generation=heard.id, after=0)
        await second.get("state")
        other = Heard(heard.accepted)
        await asyncio.gather(first.hear(heard), second.hear(other))
        assert other.text == heard.text
        ended = await second.get("notice")
        assert (ended["generation"], ended["status"]) == (heard.id, "done")


async def test_an_ended_answer_is_told_again_from_any_cursor(service: Running) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        heard = await socket.ask("once", max_tokens=40)
        for after in (0, 1, 3, heard.seq):
            again = Heard(heard.accepted, seq=after, text="".join(f.get("text", "") for f in heard.frames[:after]))
            await socket.put(type="resume", generation=heard.id, after=after)
            state = await socket.get("state")
            assert (state["status"], state["seq"]) == ("done", heard.seq)
            if after < heard.seq:
                await socket.hear(again)
                assert again.text == heard.text
        await socket.put(type="resume", generation=heard.id, after=heard.seq + 5)
        assert (await socket.get("error"))["code"] == "bad_cursor"


async def test_when_the_log_is_gone_the_state_carries_the_whole_text(service: Running, server: redis.Redis) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        heard = await socket.ask("forget me", max_tokens=40)
        server.delete(f"gen:{heard.id}")
        await socket.put(type="resume", generation=heard.id, after=2)
        state = await socket.get("state")
        assert (state["status"], state["text"]) == ("done", heard.text)
        end = await socket.get()
        assert (end["type"], end["seq"], end["sha256"]) == ("finished", heard.seq, heard.end["sha256"])


async def test_the_same_message_twice_is_answered_once(service: Running) -> None:
    id_ = str(uuid.uuid4())
    async with ChatSocket(service.url, service.key()) as socket:
        first = await socket.ask("only once", id_=id_, max_tokens=20)
    async with ChatSocket(service.url, service.key()) as socket:
        again = await socket.send("only once", id_=id_, max_tokens=20)
        assert again.id == first.id
        assert again.accepted["message"] == first.accepted["message"]
        await socket.put(type="send", id=id_, conversation=None, text="other words", params={})
        assert (await socket.get("error"))["code"] == "id_reused"


async def test_a_follow_up_knows_what_was_said(service: Running) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        first = await socket.ask("one", max_tokens=10)
        conversation = first.accepted["conversation"]
        second = await socket.ask("two", conversation=conversation, max_tokens=10)
        assert second.accepted["conversation"] == conversation
        assert second.end["usage"]["prompt_tokens"] > first.end["usage"]["prompt_tokens"]


async def test_others_cannot_read_stop_or_write_what_is_not_theirs(service: Running) -> None:
    service.manage("user", "create", "mallory", "--password", "a long enough password")
    async with (
        ChatSocket(service.url, service.key()) as alice,
        ChatSocket(service.url, service.key("mallory")) as mallory,
    ):
        heard = await alice.send("my secret", max_tokens=60)
        for frame in (
            {"type": "resume", "generation": heard.id, "after": 0},
            {"type": "stop", "generation": heard.id},
            {
                "type": "send", "id": str(uuid.uuid4()), "conversation": heard.accepted["conversation"],
                "text": "let me in", "params": {},
            },
        ):  # fmt: skip
            await mallory.put(**frame)
            assert (await mallory.get("error"))["code"] == "not_found"
        await alice.hear(heard)
        assert heard.end["reason"] == "length"
        assert mallory.notices == []


async def test_a_worker_killed_in_the_middle_costs_a_pause_and_no_token(service: Running) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        whole = await socket.ask("unbroken", max_tokens=200, seed=1)
        heard = await socket.send("unbroken", max_tokens=200, seed=1)
        await socket.hear(heard, until=8)
        (pid,) = service.processes("worker")
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await socket.hear(heard, timeout_s=60)
    print(f"the next delta came {heard.resumed_at() - killed_at:.2f} s after kill -9 of the only worker")
    assert heard.text == whole.text
    assert stored(service, heard)["response"] == whole.text


async def test_a_worker_asked_to_stop_hands_back_and_the_answer_goes_on(service: Running) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        whole = await socket.ask("handed over", max_tokens=600, seed=2, temperature=1.0)
        heard = await socket.send("handed over", max_tokens=600, seed=2, temperature=1.0)
        await socket.hear(heard, until=8)
        (pid,) = service.processes("worker")
        os.kill(pid, signal.SIGTERM)
        await socket.hear(heard, timeout_s=90)
    assert heard.text == whole.text
    assert stored(service, heard)["response"] == whole.text


async def test_redis_killed_in_the_middle_costs_a_pause_and_no_token(service: Running) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        whole = await socket.ask("steady", max_tokens=250, seed=3)
        heard = await socket.send("steady", max_tokens=250, seed=3)
        await socket.hear(heard, until=8)
        (pid,) = service.processes("redis")
        os.kill(pid, signal.SIGKILL)
        await socket.hear(heard, timeout_s=60)  # over the same socket
    assert heard.text == whole.text
    assert stored(service, heard)["response"] == whole.text


async def test_records_killed_at_the_end_stores_it_all_the_same(service: Running) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        heard = await socket.send("store me", max_tokens=60)
        await socket.hear(heard, until=8)
        (pid,) = service.processes("records")
        os.kill(pid, signal.SIGKILL)
        await socket.hear(heard, timeout_s=60)
    assert stored(service, heard)["response"] == heard.text


async def test_a_web_process_killed_in_the_middle_is_resumed_elsewhere(service: Running) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        heard = await socket.send("carry on", max_tokens=250)
        await socket.hear(heard, until=8)
        (pid,) = service.processes("web")
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        try:
            async with ChatSocket(service.url, service.key()) as socket:
                await socket.put(type="resume", generation=heard.id, after=heard.seq)
                await socket.get("state")
                await socket.hear(heard)
                break
        except (OSError, WebSocketException):  # not there yet, or just going
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
    assert stored(service, heard)["response"] == heard.text


async def test_a_conversation_deleted_while_it_answers_is_gone(service: Running, server: redis.Redis) -> None:
    async with ChatSocket(service.url, service.key()) as socket:
        heard = await socket.send("delete me", max_tokens=3000)
        await socket.hear(heard, until=4)
        async with httpx.AsyncClient(base_url=service.url, follow_redirects=True, timeout=30) as page:
            token = (await page.get("/accounts/login/")).cookies["csrftoken"]
            form = {"username": "demo", "password": service.password, "csrfmiddlewaretoken": token}
            await page.post("/accounts/login/", data=form, headers={"Referer": service.url})
            conversation = heard.accepted["conversation"]
            headers = {"X-CSRFToken": page.cookies["csrftoken"], "Referer": service.url}
            answer = await page.post(f"/c/{conversation}/delete", headers=headers)
            assert answer.status_code < 400, answer.text
            assert (await page.get(f"/c/{conversation}")).status_code == 404
    await eventually(lambda: worker_status(server)["running"] == 0)
    await eventually(lambda: not server.exists(f"lease:{heard.id}", f"wait:{heard.id}"))
