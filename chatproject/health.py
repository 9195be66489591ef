"""Is this process alive, and can it serve? `/livez` asks nobody; `/readyz` asks each dependency, briefly.

A probe runs in a thread of its own and off the event loop; while one hangs no second is started, so a dependency that
is away cannot fill the process with threads. Knows no accounts and no generations.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from channels.layers import get_channel_layer
from django.db import connections
from django.http import HttpRequest, HttpResponse, JsonResponse

from chatproject import redis_client

PROBE_S: Final = 2.0
# One for the life of the process: the layer keeps every channel that was ever received from.
_PROBE_CHANNEL: Final = f"chat.health.{uuid.uuid4().hex}"

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="health")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What one dependency answered. ``detail`` names no host and no secret."""

    is_up: bool
    ms: float
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as `/readyz` shows it."""
        shown: dict[str, Any] = {"status": "up" if self.is_up else "down", "ms": round(self.ms, 1)}
        return shown | ({"detail": self.detail} if self.detail else {})


async def livez(request: HttpRequest) -> HttpResponse:
    """Answer as long as the event loop turns."""
    return HttpResponse("ok\n", content_type="text/plain", headers={"Cache-Control": "no-store"})


async def readyz(request: HttpRequest) -> HttpResponse:
    """Answer 200 when every dependency does, 503 with the reason otherwise."""
    components = await check()
    is_ready = all(health.is_up for health in components.values())
    body = {
        "status": "ready" if is_ready else "not ready",
        "components": {name: health.as_json() for name, health in components.items()},
    }
    return JsonResponse(body, status=200 if is_ready else 503, headers={"Cache-Control": "no-store"})


async def check() -> dict[str, Health]:
    """Ask every dependency at once; takes PROBE_S at the longest and never raises."""
    probes: dict[str, Callable[[], Awaitable[None]]] = {
        "database": lambda: _in_thread(_ask_database),
        "redis": lambda: _in_thread(_ask_redis),
        "channel_layer": _ask_channel_layer,
    }
    answers = await asyncio.gather(*(_timed(name, probe) for name, probe in probes.items()))
    return dict(zip(probes, answers, strict=True))


async def _timed(name: str, probe: Callable[[], Awaitable[None]]) -> Health:
    start = time.monotonic()
    try:
        async with asyncio.timeout(PROBE_S):
            # Shielded: a probe that was given up goes on, and the next caller waits for the same one.
            await asyncio.shield(_shared(name, probe))
    except TimeoutError:
        return Health(is_up=False, ms=(time.monotonic() - start) * 1000, detail=f"no answer within {PROBE_S:g} s")
    except Exception as error:
        # The text of a database error may hold a host or a user name; the class says enough here.
        return Health(is_up=False, ms=(time.monotonic() - start) * 1000, detail=type(error).__name__)
    return Health(is_up=True, ms=(time.monotonic() - start) * 1000)


_running: dict[str, asyncio.Future[None]] = {}


def _shared(name: str, probe: Callable[[], Awaitable[None]]) -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    running = _running.get(name)
    if running is None or running.done() or running.get_loop() is not loop:
        running = _running[name] = asyncio.ensure_future(probe())
        # Its error is taken here too, for a probe whose caller has given up.
        running.add_done_callback(lambda done: done.cancelled() or done.exception())
    return running


async def _in_thread(ask: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(_threads, ask)


def _ask_database() -> None:
    try:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    finally:
        connections.close_all()


def _ask_redis() -> None:
    redis_client.client().ping()


async def _ask_channel_layer() -> None:
    layer: Any = get_channel_layer()
    word = uuid.uuid4().hex
    heard = asyncio.ensure_future(_hear(layer, word))
    try:
        # Subscribing takes a moment and what was sent before it is lost, so the word is said until it is heard.
        while not heard.done():
            await layer.send(_PROBE_CHANNEL, {"type": "health.probe", "word": word})
            await asyncio.wait({heard}, timeout=0.05)
        heard.result()
    except Exception:
        heard.cancel()
        # A failed subscription stays in the layer's table, and the next receive would wait for nothing.
        getattr(layer, "channels", {}).pop(_PROBE_CHANNEL, None)
        raise


async def _hear(layer: Any, word: str) -> None:
    while (await layer.receive(_PROBE_CHANNEL))["word"] != word:
        pass  # A word that an earlier probe said twice.
