"""`/v1` as OpenAI's clients expect it: models, chat completions, completions. One door with the chat: admission.

A request is a generation without a conversation. Who hangs up stops it: nobody else can come back for it.
"""

from __future__ import annotations

import calendar
import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from django.http import HttpRequest, HttpResponseBase, JsonResponse

from chatproject.accounts.models import ApiKey
from chatproject.api import auth, database, errors, schemas, shapes, sse
from chatproject.api.answer import Accepted, Answer, Delta, Silence, ask
from chatproject.api.connection import connection_of
from chatproject.api.edge import as_api_error, body_of, route
from chatproject.api.errors import ApiError
from chatproject.api.listener import listen
from chatproject.api.schemas import ChatRequest, CompletionRequest
from chatproject.api.sent import Sent
from chatproject.api.shapes import CHAT, TEXT, Shape
from chatproject.contract.messages import Turn
from chatproject.generations import selectors
from chatproject.generations.admission import MAX_CLIENT_ID, Draft, Params, accept, as_json

__all__ = ["chat_completions", "completions", "model", "models"]

_FINISHED: Final = ("stop", "length")


@route("POST")
async def chat_completions(request: HttpRequest) -> HttpResponseBase:
    """Answer a conversation, whole or as a stream."""
    shown = await auth.key_of(request, scope="chat")
    asked = schemas.parse(ChatRequest, body_of(request))
    return await _complete(request, shown, asked, asked.turns(), CHAT)


@route("POST")
async def completions(request: HttpRequest) -> HttpResponseBase:
    """Answer a prompt as one user turn, whole or as a stream."""
    shown = await auth.key_of(request, scope="chat")
    asked = schemas.parse(CompletionRequest, body_of(request))
    return await _complete(request, shown, asked, asked.turns(), TEXT)


@route("GET")
async def models(request: HttpRequest) -> HttpResponseBase:
    """List the models this user may use, the default first."""
    user = await auth.authenticate(request, scope="models")
    served = await database.run(selectors.models_for, user)
    return JsonResponse({"object": "list", "data": [shapes.model(each) for each in served]})


@route("GET")
async def model(request: HttpRequest, slug: str) -> HttpResponseBase:
    """Show one model."""
    user = await auth.authenticate(request, scope="models")
    return JsonResponse(shapes.model(await database.run(selectors.model_for, user, slug)))


async def _complete(
    request: HttpRequest,
    shown: ApiKey,
    asked: ChatRequest | CompletionRequest,
    turns: tuple[Turn, ...],
    shape: Shape,
) -> HttpResponseBase:
    params, key, user = asked.params(), _idempotency_key(request), shown.user

    def accept_it(generation_id: str, channel: str) -> Accepted:
        draft = Draft(
            generation_id=generation_id, user=user, client_id=key or generation_id,
            body_sha256=_digest(shape, asked.model, turns, params), thread=None, model=asked.model, turns=turns,
            params=params, origin="api", watcher=channel,
        )  # fmt: skip
        row = accept(draft).generation
        created = calendar.timegm(row.accepted_at.utctimetuple())
        return Accepted(generation_id=str(row.id), created=created, model=row.model)

    inbox = listen(request, shown) if asked.stream else None
    answer = await ask(user_id=user.pk, accept=accept_it, stops_when_left=True, inbox=inbox)
    with_logprobs = params.logprobs is not None
    headers = {"x-request-id": answer.accepted.generation_id}
    if asked.stream:
        connection_of(request).on_end(answer.leave)
        stream = _stream(answer, shape, asked.includes_usage, with_logprobs, has_key=bool(key))
        return sse.response(stream, headers=headers)
    try:
        end = await answer.wait()
    finally:
        # Also when the client hung up: Django cancels the view then.
        answer.leave()
    if end is None or end.reason not in _FINISHED:
        failed = errors.of_end(end) if end is not None else ApiError("The answer did not come.", status=503)
        failed.headers.update(headers)
        raise failed
    body = shape.body(answer.accepted, answer.text, end, answer.logprobs if with_logprobs else None)
    return JsonResponse(body, headers=headers)


async def _stream(
    answer: Answer, shape: Shape, with_usage: bool, with_logprobs: bool, *, has_key: bool
) -> AsyncIterator[bytes]:
    accepted, sent = answer.accepted, Sent()
    try:
        first = shape.first(accepted, with_usage=with_usage)
        if first is not None:
            yield sse.event(first)
        async for heard in answer.events():
            if isinstance(heard, Silence):
                yield sse.PING
            elif isinstance(heard, Delta):
                fresh = sent.take(heard.text, at=heard.at)
                logprobs = heard.logprobs if with_logprobs and fresh == heard.text else None
                if fresh:
                    yield sse.event(shape.piece(accepted, fresh, logprobs, with_usage=with_usage))
            elif heard.reason in _FINISHED:
                sent.close(answer.text)
                yield sse.event(shape.last(accepted, heard, with_usage=with_usage))
                if with_usage:
                    yield sse.event(shape.usage(accepted, heard))
            else:
                yield sse.event(errors.of_end(heard).as_json())
        yield sse.DONE
    except Exception as error:
        told = as_api_error(error)
        if has_key and told.status != 401:
            answer.keep()
        yield sse.event(told.as_json())
        yield sse.DONE


def _idempotency_key(request: HttpRequest) -> str:
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > MAX_CLIENT_ID or not key.isprintable() or not key.isascii():
        raise ApiError(
            f"Idempotency-Key must have 1 to {MAX_CLIENT_ID} printable ASCII characters.", param="Idempotency-Key"
        )
    return key


def _digest(shape: Shape, model: str | None, turns: tuple[Turn, ...], params: Params) -> str:
    """Return what makes two requests the same; how the answer is sent (stream or not) does not count."""
    parts: list[Any] = [shape.whole, model, [dataclasses.astuple(turn) for turn in turns], as_json(params)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
