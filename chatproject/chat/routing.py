"""The chat socket's path. Knows no more than which consumer answers it."""

from __future__ import annotations

from typing import Any

from channels.routing import URLRouter
from django.urls import path, re_path

from chatproject.chat.consumers import ChatConsumer, NoSuchSocket

websocket: Any = URLRouter([path("ws/chat/", ChatConsumer.as_asgi()), re_path(r"", NoSuchSocket.as_asgi())])
