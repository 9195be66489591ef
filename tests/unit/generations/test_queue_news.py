"""What is told of a wait is what the workers' claims will do: 1 is next."""

from __future__ import annotations

import asyncio
import random
import uuid

import pytest
import redis

from chatproject import redis_client
from chatproject.contract import names
from chatproject.contract.fairness import candidates
from chatproject.contract.messages import GenerationRequest, SamplingParams, Turn
from chatproject.contract.names import LANES, Lane
from chatproject.generations import scripts
from chatproject.generations.streaming import queue_news
from chatproject.generations.streaming.queue_news import QueueNews
from workers.store import Store

pytestmark = pytest.mark.needs("redis")
COST = 100.0


def waits(user: str, lane: Lane = Lane.INTERACTIVE, *, accepted_ms: int = 1) -> GenerationRequest:
    request = GenerationRequest(
        generation_id=str(uuid.uuid4()), model="demo", lane=lane, user_id=user, turns=(Turn(role="user", text="hi"),),
        params=SamplingParams(), accepted_ms=accepted_ms, expires_ms=10**14,
    )  # fmt: skip
    assert scripts.enqueue(request) == "waiting"
    return request


def news_of(request: GenerationRequest) -> QueueNews:
    news = QueueNews(request.generation_id)
    news.model, news.lane, news.user_id = request.model, request.lane, request.user_id
    return news


def told(requests: list[GenerationRequest]) -> list[int]:
    async def read() -> dict[str, int]:
        client = redis_client.make_async_client()
        try:
            queued = await QueueNews.read(client, [news_of(request) for request in requests])
        finally:
            await client.aclose()
        return {id_: each.position for id_, each in queued.items()}

    positions = asyncio.run(read())
    return [positions[request.generation_id] for request in requests]


def claim(store: Store) -> str:
    found = candidates(store.look("demo", num_users=4, num_ids=2), lambda lane, about: COST)
    claimed = store.claim_fairly(found[0], model="demo", slot="w", boot="b", cost=COST)
    assert claimed is not None
    return claimed.request.generation_id


def test_the_user_with_one_message_is_not_told_to_wait_for_a_flood(store: Store) -> None:
    flood = [waits("flood", accepted_ms=index) for index in range(30)]
    claim(store)
    alice = waits("alice", accepted_ms=100)
    assert told([alice, flood[1], flood[2]]) == [1, 2, 3]


def test_every_position_is_the_number_of_claims_until_it_is_served(store: Store) -> None:
    rng = random.Random(11)
    requests = [
        waits(rng.choice(("alice", "bob", "charlie", "dora")), rng.choice(LANES), accepted_ms=index)
        for index in range(40)
    ]
    served = [claim(store) for _ in range(8)]
    waiting = [request for request in requests if request.generation_id not in served]
    positions = dict(zip((request.generation_id for request in waiting), told(waiting), strict=True))
    assert [positions[claim(store)] for _ in range(len(waiting))] == list(range(1, len(waiting) + 1))


def test_beyond_the_look_nobody_is_told_to_be_nearer_than_it_goes(
    store: Store, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_news, "LOOK_CLAIMS", 10)
    vips = [waits("alice", Lane.VIP, accepted_ms=index) for index in range(20)]
    late = waits("bob", Lane.BATCH, accepted_ms=50)
    assert told([vips[0], vips[9], vips[10], vips[19], late]) == [1, 10, 11, 20, 21]
    server.zrem(names.wait_key("demo", "batch"), late.generation_id)
    assert told([late]) == [1]
