"""Server-sent events: how a stream of events lies on HTTP. Knows no dialect."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from django.http import StreamingHttpResponse

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"


def event(data: Mapping[str, Any], *, id_: int | None = None) -> bytes:
    """Return one event; JSON has no line breaks, so one line holds it."""
    head = f"id: {id_}\n" if id_ is not None else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def response(events: AsyncIterator[bytes], *, headers: Mapping[str, str] | None = None) -> StreamingHttpResponse:
    """Return the streaming answer; proxies are told not to hold it back."""
    return StreamingHttpResponse(
        events,
        content_type="text/event-stream; charset=utf-8",
        headers={"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no", **(headers or {})},
    )
