"""What one web process is made of: Django over HTTP, the chat socket, and nothing of torch."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

from chatproject.answer_limit import limit_answers
from chatproject.garbage import leave_out_what_is_loaded

# First, because it loads the apps that the rest imports.
http = get_asgi_application()

from chatproject import urls  # noqa: E402, F401 - else the first request imports all that it names
from chatproject.api.connection import connected  # noqa: E402
from chatproject.chat.routing import websocket  # noqa: E402

limit_answers()
application = ProtocolTypeRouter({"http": connected(http), "websocket": websocket})
leave_out_what_is_loaded()
