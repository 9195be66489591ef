"""The channel layer's sending side, as a worker needs it: one thread, which never waits for how many have heard.

The layer's own `send` takes a lock, an asyncio client and a round trip for each message, on the way of every token.
This writes what that writes, and reads Redis's answers before the next message.
"""

from __future__ import annotations

from typing import Any

import redis
from channels_redis.pubsub import RedisPubSubChannelLayer

from chatproject.contract import broker


class Channels:
    """Sends to channels of the layer. Owned by one thread."""

    def __init__(self, redis_url: str, *, timeout_s: float = 1.0) -> None:
        # For the form of a message: which serializer, encrypted or not.
        self._layer = RedisPubSubChannelLayer(**broker.channel_layer(redis_url)["CONFIG"])
        self._pool = redis.ConnectionPool.from_url(
            redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, health_check_interval=15, retry=None
        )
        self._connection: Any = self._pool.make_connection()
        self._num_unread = 0

    def form(self, message: dict[str, Any]) -> bytes:
        """Return a message as it travels."""
        formed: bytes = self._layer.serialize(message)
        return formed

    def send(self, channel: str, message: bytes) -> None:
        """Send what `form` returned to whoever listens; nobody is told when none does.

        Raises redis.RedisError when Redis is away. One that was lost on the way is missed by its readers: they look.
        """
        self._read()
        try:
            self._connection.send_command("PUBLISH", channel, message)
        except BaseException:
            self._connection.disconnect()
            raise
        self._num_unread += 1

    def _read(self) -> None:
        try:
            while self._num_unread:
                self._connection.read_response()
                self._num_unread -= 1
            if self._connection.is_connected and self._connection.can_read(timeout=0):
                self._connection.disconnect()  # there is nothing to read but its end
        except (redis.RedisError, OSError):
            self._connection.disconnect()
            self._num_unread = 0
