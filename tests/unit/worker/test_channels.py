"""A worker's messages are those of the channel layer, and a connection that broke costs none of the next ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
from channels_redis.pubsub import RedisPubSubChannelLayer

from chatproject.contract import broker
from workers.channels import Channels

pytestmark = pytest.mark.needs("redis")


async def hear(url: str, count: int, send: Any) -> list[dict[str, Any]]:
    """Return what a web process hears after ``send`` was called beside it."""
    layer = RedisPubSubChannelLayer(**broker.channel_layer(url)["CONFIG"])
    hearing = asyncio.create_task(layer.receive("chat.web.test"))
    with redis.Redis.from_url(url, decode_responses=True) as server:
        while "chat.web.test" not in server.pubsub_channels():  # noqa: ASYNC110 - it is Redis that knows
            await asyncio.sleep(0.01)
    await asyncio.to_thread(send)
    heard = [await asyncio.wait_for(hearing, 5)]
    while len(heard) < count:
        heard.append(await asyncio.wait_for(layer.receive("chat.web.test"), 5))
    await layer.flush()
    return heard


def test_what_is_sent_is_heard_through_the_layer_in_order(fresh_redis_url: str) -> None:
    channels = Channels(fresh_redis_url)
    messages = [{"type": "x", "number": number, "text": "\U0001f34e" * number} for number in range(50)]

    def send() -> None:
        for message in messages:
            channels.send("chat.web.test", channels.form(message))

    assert asyncio.run(hear(fresh_redis_url, 50, send)) == messages


def test_after_a_connection_broke_the_next_message_comes(fresh_redis_url: str) -> None:
    channels = Channels(fresh_redis_url)
    channels.send("chat.web.nobody", channels.form({"type": "x"}))

    def send() -> None:
        with redis.Redis.from_url(fresh_redis_url) as server:
            server.client_kill_filter(_type="normal", skipme=True)
        channels.send("chat.web.test", channels.form({"type": "after"}))

    assert asyncio.run(hear(fresh_redis_url, 1, send)) == [{"type": "after"}]


def test_a_redis_that_is_away_is_told_and_comes_back(fresh_redis_url: str) -> None:
    channels = Channels(fresh_redis_url)
    kwargs = channels._connection.__dict__
    port, kwargs["port"] = kwargs["port"], 1
    with pytest.raises(redis.RedisError):
        channels.send("chat.web.test", channels.form({"type": "x"}))
    kwargs["port"] = port
    channels.send("chat.web.test", channels.form({"type": "x"}))
