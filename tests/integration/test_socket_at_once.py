"""Many messages at the same moment, on SQLite and on PostgreSQL: each is accepted once, and in an order."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.integration.sockets import socket
from tests.integration.stack import Stack, running

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]
NUM_SOCKETS = 12

_MESSAGES = """
import json
from collections import Counter
from chatproject.chat.models import Conversation, Message
from chatproject.generations.models import Generation
places = Message.objects.values_list("conversation_id", "position")
print(json.dumps({
    "conversations": Conversation.objects.count(), "generations": Generation.objects.count(),
    "messages": len(places), "places": len(set(places)),
    "unanswered": Message.objects.filter(role="assistant", generation_id=None).count(),
}))
"""


@pytest.fixture(
    scope="module",
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))],
)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stack]:
    directory = Path(tmp_path_factory.mktemp("at-once"))
    other = {} if request.param == "sqlite" else {"DATABASE_URL": request.getfixturevalue("postgres_url")}
    with running(directory, redis_url, with_worker=False, **other) as stack:
        stack.start("records")  # nobody answers here, but a stop is stored
        yield stack
        stack.stop("records")


async def test_each_message_is_accepted_once_however_many_come_at_once(stack: Stack) -> None:
    async with AsyncExitStack() as open_:
        clients = [await open_.enter_async_context(socket(stack, "alice")) for _ in range(NUM_SOCKETS)]

        async def told_all(**fields: object) -> list[dict[str, object]]:
            await asyncio.gather(*(client.send(**fields) for client in clients))  # type: ignore[arg-type]
            return list(await asyncio.gather(*(client.next("accepted", "error") for client in clients)))

        # The same message over every socket: one acceptance, told to all.
        same = await told_all(text="the same", id=str(uuid.uuid4()))
        assert {frame["type"] for frame in same} == {"accepted"}
        assert len({frame["generation"] for frame in same}) == 1
        # The conversation still answers: nobody gets in.
        busy = await told_all(text="me too", conversation=same[0]["conversation"])
        assert {frame["code"] for frame in busy} == {"conversation_busy"}
        # Set free, exactly one of them gets in, behind the one that was there.
        await clients[0].say(type="stop", generation=same[0]["generation"])
        await asyncio.gather(*(client.next("finished") for client in clients))
        race = await told_all(text="first!", conversation=same[0]["conversation"])
        assert Counter(frame.get("code", "accepted") for frame in race) == {
            "accepted": 1, "conversation_busy": NUM_SOCKETS - 1,
        }  # fmt: skip
        # New conversations do not hinder each other.
        fresh = await told_all(text="another")
        assert len({frame["conversation"] for frame in fresh}) == NUM_SOCKETS
    found = json.loads(await asyncio.to_thread(stack.python, _MESSAGES))
    num = 2 + NUM_SOCKETS  # the same, first!, and one each
    assert found == {
        "conversations": 1 + NUM_SOCKETS, "generations": num, "messages": 2 * num, "places": 2 * num, "unanswered": 0,
    }  # fmt: skip
