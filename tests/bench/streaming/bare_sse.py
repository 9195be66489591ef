"""The least that can stream: FastAPI with the engine in its process, an SSE event per token; no users, no memory.

uvicorn tests.bench.streaming.bare_sse:app
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Body, FastAPI
from fastapi.responses import StreamingResponse

from tests.bench.streaming.engine import PeerEngine

_queues: dict[str, asyncio.Queue[tuple[str, bool]]] = {}
_engine: PeerEngine


@asynccontextmanager
async def _run(app: FastAPI) -> AsyncIterator[None]:
    global _engine
    loop = asyncio.get_running_loop()

    def deliver(id_: str, text: str, is_end: bool) -> None:
        if id_ in _queues:
            _queues[id_].put_nowait((text, is_end))

    _engine = PeerEngine(lambda *item: loop.call_soon_threadsafe(deliver, *item))
    yield


app = FastAPI(lifespan=_run)


@app.post("/stream")
async def stream(body: dict[str, Any] = Body()) -> StreamingResponse:  # noqa: B008
    """Answer with one event per token."""
    queue: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
    _queues[body["id"]] = queue
    _engine.ask(body["text"], body["max_tokens"], body["id"])

    async def events() -> AsyncIterator[str]:
        while True:
            text, is_end = await queue.get()
            if text:
                yield f"data: {json.dumps({'token': text})}\n\n"
            if is_end:
                del _queues[body["id"]]
                yield "data: [DONE]\n\n"
                return

    return StreamingResponse(events(), media_type="text/event-stream")
