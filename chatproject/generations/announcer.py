"""Tells web processes: frames to those that watch a generation, notices to those that hold a user's sockets.

One thread with one event loop and one channel layer per process: `async_to_sync` would make a loop per call, and leak.
What is lost here comes back: a reader that hears nothing reads the log, then the database.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from channels_redis.pubsub import RedisPubSubChannelLayer
from django.conf import settings

from chatproject import redis_client
from chatproject.contract import frames
from chatproject.contract.frames import Frame

log = logging.getLogger(__name__)
NOTICE_TYPE: Final = "generation.notice"


def user_watch_key(user_id: str) -> str:
    """Sorted set of the channels that hold sockets of this user; score = expiry in ms."""
    return f"watch:user:{user_id}"


class Announcer:
    """Owns a daemon thread with an event loop; its methods may be called from any thread and return at once."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._layer: RedisPubSubChannelLayer | None = None
        threading.Thread(target=self._loop.run_forever, name="announcer", daemon=True).start()

    def send_frames(self, channels: Sequence[str], frames_: Sequence[Frame]) -> None:
        """Send frames to the web processes behind ``channels``."""
        if channels:
            self._send(channels, frames.channel_message(frames_))

    def notice(self, *, user_id: str, thread: str | None, generation_id: str, status: str) -> None:
        """Tell every socket of the user that a generation of theirs was accepted or has ended."""
        message = {
            "type": NOTICE_TYPE, "user": user_id, "conversation": thread, "generation": generation_id, "status": status,
        }  # fmt: skip
        asyncio.run_coroutine_threadsafe(self._notice(user_id, message), self._loop)

    def _send(self, channels: Sequence[str], message: dict[str, Any]) -> None:
        asyncio.run_coroutine_threadsafe(self._send_all(channels, message), self._loop)

    async def _notice(self, user_id: str, message: dict[str, Any]) -> None:
        try:
            channels: Any = await self._redis().zrangebyscore(user_watch_key(user_id), time.time() * 1000, "+inf")
        except Exception as error:
            log.warning("a notice was not sent: %r", error)
            return
        await self._send_all(channels, message)

    async def _send_all(self, channels: Sequence[str], message: dict[str, Any]) -> None:
        for channel in channels:
            try:
                await self._channel_layer().send(channel, message)
            except Exception as error:
                log.warning("frames for %s come from the log instead: %r", channel, error)

    def _channel_layer(self) -> RedisPubSubChannelLayer:
        if self._layer is None:
            self._layer = RedisPubSubChannelLayer(**settings.CHANNEL_LAYERS["default"]["CONFIG"])
        return self._layer

    @functools.cache  # noqa: B019 - one announcer per process
    def _redis(self) -> redis_client.AsyncClient:
        return redis_client.make_async_client()


@functools.cache
def get_announcer() -> Announcer:
    """Return the process's announcer."""
    return Announcer()
