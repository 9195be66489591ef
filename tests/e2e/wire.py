"""A connection that a test breaks: what lies between a page's WebSocket and the service.

Knows frames by their fields. Knows nothing of what the page shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from playwright.sync_api import WebSocketRoute

from tests.e2e.page import NOBODY


class Wire:
    """What lies between the page and the service: it can be cut, kept down, or lose frames."""

    def __init__(self) -> None:
        self.is_down = False
        self.close_code: int | None = None
        self.passes: Callable[[dict[str, Any]], bool] = lambda frame: True
        self.answers: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda frame: None  # in the service's place
        self.sent: list[dict[str, Any]] = []
        self.opened = 0
        self._routes: list[tuple[WebSocketRoute, WebSocketRoute]] = []

    def connect(self, route: WebSocketRoute) -> None:
        if self.is_down or self.close_code:
            route.close(code=self.close_code or 1001)
            return
        self.opened += 1
        server = route.connect_to_server()
        self._routes.append((route, server))

        def to_page(text: str | bytes) -> None:
            frame = json.loads(text)
            if frame.get("generation") == NOBODY or self.passes(frame):
                route.send(text)

        def to_service(text: str | bytes) -> None:
            frame = json.loads(text)
            if frame.get("generation") != NOBODY:
                self.sent.append(frame)
                if (answer := self.answers(frame)) is not None:
                    return route.send(json.dumps(answer)) if answer else None
            server.send(text)

        server.on_message(to_page)
        route.on_message(to_service)

    def say(self, frame: dict[str, Any]) -> None:
        """Tell the page something in the service's place."""
        route, _ = self._routes[-1]
        route.send(json.dumps(frame))

    def cut(self, code: int = 1012) -> None:
        for route, server in self._routes:
            server.close()
            route.close(code=code)
        self._routes.clear()
