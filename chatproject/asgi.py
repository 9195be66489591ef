"""What one web process is made of: Django over HTTP, the chat socket, and nothing of torch."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

# First, because it loads the apps that the rest imports.
http = get_asgi_application()

from chatproject.chat.routing import websocket  # noqa: E402

application = ProtocolTypeRouter({"http": http, "websocket": websocket})
