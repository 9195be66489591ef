"""The plain REST routes: a message in, an answer out; in a conversation like the page's, through the same door.

Closed: an unknown field is refused by name. Who hangs up comes back with the correlation id, so nothing is stopped.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final

import redis
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.utils import timezone

from chatproject import health as probes
from chatproject import redis_client
from chatproject.api import auth, database, errors, schemas, sse
from chatproject.api.answer import Accepted, Answer, Delta, Silence, ask, read
from chatproject.api.connection import connection_of
from chatproject.api.edge import as_api_error, body_of, route
from chatproject.api.errors import ApiError
from chatproject.api.listener import listen
from chatproject.chat import protocol, services
from chatproject.contract import broker, names
from chatproject.contract.errors import ContractError
from chatproject.contract.frames import End
from chatproject.generations import selectors
from chatproject.generations.models import Generation, ServedModel

__all__ = ["async_chat", "chat", "check_response", "health", "queue_stats", "send_message", "stream", "stream_chat"]

WAIT_S: Final = 120.0
_FIELDS: Final = {
    "message": "text",
    "conversation_id": "conversation",
    "id": "id",
    "model": "model",
    "params": "params",
}


@route("POST", is_plain=True)
async def chat(request: HttpRequest) -> HttpResponseBase:
    """Send a message and wait for the answer; 202 with the id when it takes longer than WAIT_S."""
    start = time.monotonic()
    answer = await _send(request)
    try:
        end = await answer.wait(timeout_s=WAIT_S)
    finally:
        answer.leave()
    id_ = answer.accepted.generation_id
    took_s = round(time.monotonic() - start, 3)
    conversation = {"conversation_id": answer.accepted.conversation_id, "correlation_id": id_}
    if end is None:
        return JsonResponse({"status": "processing", **conversation, "check_endpoint": _check(id_)}, status=202)
    if end.code is not None:
        raise errors.of_end(end)
    return JsonResponse({"response": answer.text, **conversation, "processing_time": took_s, **_how(end)})


@route("POST", is_plain=True)
async def async_chat(request: HttpRequest) -> HttpResponseBase:
    """Send a message and get the address where the answer will be."""
    answer = await _send(request)
    answer.leave()
    id_ = answer.accepted.generation_id
    body = {"status": "accepted", "correlation_id": id_, "conversation_id": answer.accepted.conversation_id}
    return JsonResponse(body | {"check_endpoint": _check(id_)}, status=202)


@route("POST", is_plain=True)
async def send_message(request: HttpRequest) -> HttpResponseBase:
    """Send a message and get its ids; the answer is read in the conversation, or by any of the other routes."""
    answer = await _send(request)
    answer.leave()
    accepted = answer.accepted
    body = {"status": "sent", "correlation_id": accepted.generation_id, "conversation_id": accepted.conversation_id}
    return JsonResponse(body, status=202)


@route("POST", is_plain=True)
async def stream_chat(request: HttpRequest) -> HttpResponseBase:
    """Send a message and get the address of its stream."""
    answer = await _send(request)
    answer.leave()
    id_ = answer.accepted.generation_id
    body = {"correlation_id": id_, "conversation_id": answer.accepted.conversation_id}
    return JsonResponse(body | {"stream_endpoint": f"/stream/{id_}"}, status=202)


@route("GET", is_plain=True)
async def check_response(request: HttpRequest, correlation_id: str) -> HttpResponseBase:
    """Show an answer, or how far it is; ask as often as you like."""
    user = await auth.authenticate(request, scope="chat")
    row = await database.run(selectors.owned, user_id=user.pk, generation_id=correlation_id)
    body: dict[str, Any] = {"correlation_id": str(row.id), "conversation_id": str(row.thread) if row.thread else None}
    if not row.is_terminal:
        status = await database.run(_live_status, str(row.id))
        return JsonResponse({"status": status, **body}, status=202, headers={"retry-after": "1"})
    body |= {"status": row.status, "response": row.answer}
    if row.code:
        body |= {"error": row.code, "message": row.message}
    took_s = (row.ended_at - row.accepted_at).total_seconds() if row.ended_at else None
    usage = {"prompt_tokens": row.prompt_tokens, "completion_tokens": row.completion_tokens}
    return JsonResponse(body | {"reason": row.reason or None, "processing_time": took_s, "usage": usage})


@route("GET", is_plain=True)
async def stream(request: HttpRequest, correlation_id: str) -> HttpResponseBase:
    """Stream an answer from its beginning, or from what follows `Last-Event-ID`."""
    key = await auth.key_of(request, scope="chat")
    row = await database.run(selectors.owned, user_id=key.user_id, generation_id=correlation_id)
    after = _cursor(request.headers.get("Last-Event-ID", ""))
    inbox = listen(request, key)
    answer = await read(user_id=key.user_id, accepted=_of_row(row), after=after, inbox=inbox)
    connection_of(request).on_end(answer.leave)
    return sse.response(_events(answer))


@route("GET", is_plain=True)
async def health(request: HttpRequest) -> HttpResponseBase:
    """Say how the service and its parts are."""
    components = await probes.check()
    is_healthy = all(part.is_up for part in components.values())
    body = {
        "status": "healthy" if is_healthy else "unhealthy",
        "components": {name: part.as_json() for name, part in components.items()},
        "timestamp": timezone.now().isoformat(),
    }
    return JsonResponse(body, status=200 if is_healthy else 503)


@route("GET", is_plain=True)
async def queue_stats(request: HttpRequest) -> HttpResponseBase:
    """Count what waits and who serves, per queue and lane. For staff."""
    user = await auth.authenticate(request, scope="chat")
    if not user.is_staff:
        raise ApiError("Only staff may see the queues.", status=403, type="permission_error", code="forbidden")
    try:
        return JsonResponse({"queues": await database.run(_queues), "timestamp": timezone.now().isoformat()})
    except (redis.RedisError, ContractError) as error:
        raise ApiError("The queue does not answer.", status=503, type="server_error", code="unavailable") from error


async def _send(request: HttpRequest) -> Answer:
    user = await auth.authenticate(request, scope="chat")
    frame = _frame(schemas.load_json(body_of(request)))

    def accept_it(generation_id: str, channel: str) -> Accepted:
        sent = services.send(user=user, frame=frame, generation_id=generation_id, watcher=channel)
        return Accepted(
            generation_id=sent.generation_id, created=int(time.time()), model=frame.model or "",
            conversation_id=sent.conversation_id,
        )  # fmt: skip

    return await ask(user_id=user.pk, accept=accept_it, stops_when_left=False)


def _frame(fields: dict[str, Any]) -> protocol.Send:
    """Read the body by the rules of the socket's `send`. Raises ApiError and Refused."""
    for name in fields:
        if name not in _FIELDS:
            raise schemas.unknown_field(name, _FIELDS)
    if "message" not in fields:
        raise ApiError("message is missing.", code="bad_params", param="message")
    if not isinstance(fields["message"], str):
        raise ApiError("message must be a string.", code="bad_params", param="message")
    named = {_FIELDS[name]: value for name, value in fields.items()}
    frame = protocol.parse({"type": "send", "id": str(uuid.uuid4()), **named})
    assert isinstance(frame, protocol.Send)
    return frame


async def _events(answer: Answer) -> AsyncIterator[bytes]:
    try:
        yield sse.PING  # daphne sends the headers with the first bytes, and the first token may be long in coming
        async for heard in answer.events():
            if isinstance(heard, Silence):
                yield sse.PING
            elif isinstance(heard, Delta):
                replaced = {"replace": True} if heard.replaces else {}
                yield sse.event({"token": heard.text, "done": False, **replaced}, id_=heard.seq)
            elif heard.code is not None:
                yield _failed(errors.of_end(heard))
            else:
                yield sse.event({"token": "", "done": True, **_how(heard), "sha256": heard.sha256})
        yield sse.DONE
    except Exception as error:
        yield _failed(as_api_error(error, is_plain=True))
        yield sse.DONE


def _failed(error: ApiError) -> bytes:
    return sse.event({"token": "", "done": True, "error": error.code or error.type, "message": error.message})


def _how(end: End) -> dict[str, Any]:
    usage = {"prompt_tokens": end.usage.prompt_tokens, "completion_tokens": end.usage.completion_tokens}
    return {"reason": str(end.reason), "usage": usage}


def _of_row(row: Generation) -> Accepted:
    return Accepted(
        generation_id=str(row.id), created=int(row.accepted_at.timestamp()), model=row.model,
        conversation_id=str(row.thread) if row.thread else None,
    )  # fmt: skip


def _cursor(text: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ApiError("Last-Event-ID must be the id of the last event you have.", code="bad_cursor")
    return int(text)


def _check(generation_id: str) -> str:
    return f"/check-response/{generation_id}"


def _live_status(generation_id: str) -> str:
    try:
        return "running" if selectors.log_of(generation_id).frames else "waiting"
    except (redis.RedisError, ContractError):
        return "waiting"


def _queues() -> list[dict[str, Any]]:
    client, workers = redis_client.client(), selectors.workers()
    queues = []
    for model in ServedModel.objects.filter(is_enabled=True):
        mine = [worker for worker in workers if worker.model == model.slug]
        tickets: int = sum(client.llen(key) for key in broker.redis_lists(names.generate_queue(model.slug)))
        lanes: dict[str, Any] = {lane.value: client.zcard(names.wait_key(model.slug, lane)) for lane in names.LANES}
        queues.append(
            {
                "queue": names.generate_queue(model.slug), "messages": sum(lanes.values()), "lanes": lanes,
                "consumers": len(mine), "running": sum(worker.running for worker in mine), "tickets": tickets,
            }
        )  # fmt: skip
    return queues
