"""Lead the connections of the service's processes through the proxy of the chaos run, in those processes themselves.

A worker that takes over from a spare gets its environment late, so it is the connections that are led, not the URL.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

Ask = Callable[[str, int], tuple[str, int]]


def role_of(command: Sequence[str]) -> str | None:
    """Say which role a command line starts; None for what is none of the three."""
    if "daphne" in command:
        return "web"
    if "workers.app" in command or "workers.spare" in command:
        return "worker"
    return "records" if "chatproject.celery" in command and "worker" in command else None


def changes(control: str) -> dict[str, Callable[[ModuleType], None]]:
    """Return what `after_import` has to change so that all connections of this process go through the proxy."""
    role = role_of(sys.orig_argv)
    if role is None:
        return {}

    @functools.cache
    def ask(host: str, port: int) -> tuple[str, int]:
        """Have a link to this address made; return its own. Source: `tests.chaos.proxy`."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(control)
            connection.sendall(f"{role} {host} {port}\n".encode())
            return "127.0.0.1", int(connection.makefile().readline())

    database = os.environ.get("DATABASE_URL", "")
    if database.startswith("postgres"):
        parts = urlsplit(database)
        host, port = ask(parts.hostname or "127.0.0.1", parts.port or 5432)
        user = f"{parts.username}@" if parts.username else ""
        os.environ["DATABASE_URL"] = parts._replace(netloc=f"{user}{host}:{port}").geturl()
    lead = functools.partial(_lead, ask=ask)
    return {"redis.connection": lead, "redis.asyncio.connection": lead}


def _lead(module: ModuleType, *, ask: Ask) -> None:
    start = module.Connection.__init__

    @functools.wraps(start)
    def start_led(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **options)
        self.host, self.port = ask(self.host, int(self.port))

    module.Connection.__init__ = start_led
