"""Tells web processes: frames to those that watch a generation, notices to those that hold a user's sockets.

Writes the channel layer's messages by the synchronous client: the layer's own `send` needs an event loop, a thread for
it, and twice the time. What is lost here comes back: a reader that hears nothing reads the log, then the database.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, Final

import redis
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.conf import settings

from chatproject import redis_client, service_clock
from chatproject.contract import frames
from chatproject.contract.frames import Frame
from chatproject.generations import scripts

log = logging.getLogger(__name__)
NOTICE_TYPE: Final = "generation.notice"


def user_watch_key(user_id: str) -> str:
    """Sorted set of the channels that hold sockets of this user; score = expiry in ms."""
    return f"watch:user:{user_id}"


class Announcer:
    """Its methods may be called from any thread, never raise, and wait for Redis as long as its client does."""

    def __init__(self) -> None:
        # For the form of a message: which serializer, encrypted or not.
        self._layer = RedisPubSubChannelLayer(**settings.CHANNEL_LAYERS["default"]["CONFIG"])

    def send_frames(self, channels: Sequence[str], frames_: Sequence[Frame]) -> None:
        """Send frames to the web processes behind ``channels``."""
        if not channels:
            return
        message = self._layer.serialize(frames.channel_message(frames_))
        pipe = redis_client.client().pipeline(transaction=False)
        for channel in channels:
            pipe.publish(channel, message)
        try:
            pipe.execute()
        except (redis.RedisError, OSError) as error:
            log.warning("frames for %s come from the log instead: %r", ", ".join(channels), error)

    def notice(self, *, user_id: str, thread: str | None, generation_id: str, status: str) -> None:
        """Tell every socket of the user that a generation of theirs was accepted or has ended."""
        message: dict[str, Any] = {
            "type": NOTICE_TYPE, "user": user_id, "conversation": thread, "generation": generation_id, "status": status,
        }  # fmt: skip
        try:
            form = self._layer.serialize(message)
            scripts.notify(user_watch_key(user_id), now_ms=service_clock.now_ms(), message=form)
        except (redis.RedisError, OSError) as error:
            log.warning("a notice was not sent: %r", error)


@functools.cache
def get_announcer() -> Announcer:
    """Return the process's announcer."""
    return Announcer()
