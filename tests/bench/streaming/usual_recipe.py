"""The usual Channels recipe: a group per socket, and a worker that calls `async_to_sync(group_send)` for each token.

daphne tests.bench.streaming.usual_recipe:application    and    python -m tests.bench.streaming.usual_recipe
"""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import redis
import redis.asyncio
from asgiref.sync import async_to_sync
from django.conf import settings

_CONNECTIONS = 10_000  # the default of 100 fails some of its chats
_LAYER = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {
            "hosts": [{"address": os.environ["REDIS_URL"], "socket_timeout": None, "max_connections": _CONNECTIONS}],
            "capacity": 100_000,
            "prefix": "usual",
        },
    }
}
settings.configure(CHANNEL_LAYERS=_LAYER, ALLOWED_HOSTS=["*"], SECRET_KEY="benchmark", INSTALLED_APPS=[])

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter  # noqa: E402

_QUEUE = "usual-requests"
_redis = redis.asyncio.Redis.from_url(os.environ["REDIS_URL"], max_connections=_CONNECTIONS)


class Chat(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Puts a request into a list, and passes on what its group hears."""

    async def connect(self) -> None:
        """Join a group of its own."""
        self.group = uuid.uuid4().hex
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Queue the request."""
        asked = json.loads(text_data or "{}")
        await _redis.lpush(_QUEUE, json.dumps({"group": self.group, **asked}))

    async def token(self, event: dict[str, Any]) -> None:
        """Show one token, or the end."""
        await self.send(text_data=json.dumps(event["message"]))

    async def disconnect(self, code: int) -> None:
        """Leave the group."""
        await self.channel_layer.group_discard(self.group, self.channel_name)


application = ProtocolTypeRouter({"websocket": Chat.as_asgi()})


def work() -> None:
    """Generate what is queued."""
    from tests.bench.streaming.engine import PeerEngine

    layer = get_channel_layer()

    def send(group: str, text: str, is_end: bool) -> None:
        message = {"type": "finished" if is_end else "delta", "text": text}
        async_to_sync(layer.group_send)(group, {"type": "token", "message": message})

    engine = PeerEngine(send)
    queue = redis.Redis.from_url(os.environ["REDIS_URL"], socket_timeout=30)  # The default is as short as the wait.
    while True:
        found = queue.brpop([_QUEUE], timeout=5)
        if found:
            asked = json.loads(found[1])
            engine.ask(asked["text"], asked["max_tokens"], asked["group"])


if __name__ == "__main__":
    work()
