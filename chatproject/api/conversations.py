"""Conversations and their history over plain REST: those of the page, for programs.

Closed like the other plain routes: an unknown field is refused by name. What is foreign does not exist: 404.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from django.http import HttpRequest, HttpResponseBase, JsonResponse

from chatproject.accounts.models import User
from chatproject.api import auth, database, schemas
from chatproject.api.edge import body_of, route
from chatproject.api.errors import ApiError
from chatproject.chat import conversations as conversation_services
from chatproject.chat import protocol, selectors
from chatproject.chat.models import Conversation
from chatproject.chat.selectors import TranscriptMessage
from chatproject.generations import selectors as generation_selectors
from chatproject.generations.models import Status
from chatproject.generations.params import is_storable

__all__ = ["conversation", "conversations", "messages"]

MOST: Final = 200  # conversations on one page of the list
_LONGEST: Final = {
    "title": conversation_services.TITLE_MAX, "model": 63, "system_prompt": protocol.MAX_TEXT_CHARACTERS,
}  # fmt: skip


@route("GET", "POST", is_plain=True)
async def conversations(request: HttpRequest) -> HttpResponseBase:
    """List the user's conversations, the last used first (`?limit=`, `?before=`, `?q=`), or make an empty one."""
    user = await auth.authenticate(request, scope="chat")
    if request.method == "GET":
        limit, before = _limit(request.GET.get("limit", "")), _moment(request.GET.get("before", ""))
        query = request.GET.get("q", "").replace("\0", "").strip()[:120]
        found = await database.run(selectors.conversations_of, user, limit=limit + 1, before=before, query=query)
        shown = found[:limit]
        goes_on = shown[-1].updated_at.isoformat() if len(found) > limit else None
        return JsonResponse({"conversations": [_entry(each) for each in shown], "next": goes_on})
    fields = _texts(request, "title", "model", "system_prompt")
    made = await database.run(_create, user, fields)
    return JsonResponse(_entry(made), status=201)


@route("GET", "PATCH", "DELETE", is_plain=True)
async def conversation(request: HttpRequest, conversation_id: str) -> HttpResponseBase:
    """Show, rename or delete one conversation; deleting stops what it is answering."""
    user = await auth.authenticate(request, scope="chat")
    if request.method == "DELETE":
        await database.run(conversation_services.delete, user=user, conversation_id=conversation_id)
        return JsonResponse({"deleted": conversation_id})
    work: Callable[[], Conversation] = partial(selectors.conversation, user, conversation_id)
    if request.method == "PATCH":
        title = _texts(request, "title").get("title", "")
        work = partial(conversation_services.rename, user=user, conversation_id=conversation_id, title=title)
    return JsonResponse(_entry(await database.run(work)))


@route("GET", is_plain=True)
async def messages(request: HttpRequest, conversation_id: str) -> HttpResponseBase:
    """Show the history of a conversation, oldest first, without what was edited away or answered again."""
    user = await auth.authenticate(request, scope="chat")
    shown = await database.run(selectors.transcript, user, conversation_id)
    return JsonResponse({"conversation_id": conversation_id, "messages": [_message(each) for each in shown]})


def _create(user: User, fields: dict[str, str]) -> Conversation:
    slug = fields.get("model")
    if slug and slug not in {model.slug for model in generation_selectors.models_for(user)}:
        raise ApiError(f"There is no model {slug[:63]!a} for you. GET /v1/models lists them.", status=404,
                       code="model_unknown", param="model")  # fmt: skip
    return conversation_services.create(user=user, **fields)


def _texts(request: HttpRequest, *known: str) -> dict[str, str]:
    """Read a body of texts. Raises ApiError that names the field."""
    fields = schemas.load_json(body_of(request) or b"{}")
    for name, value in fields.items():
        if name not in known:
            raise schemas.unknown_field(name, known)
        if not isinstance(value, str) or not is_storable(value):
            raise ApiError(f"{name} must be a text without NUL.", code="bad_params", param=name)
        if len(value) > _LONGEST[name]:
            message = f"{name} has {len(value):,} characters; at most {_LONGEST[name]:,} are taken."
            raise ApiError(message, code="bad_params", param=name)
    return fields


def _limit(text: str) -> int:
    if not text:
        return selectors.PAGE
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MOST):
        raise ApiError(f"limit must be a number from 1 to {MOST}.", code="bad_params", param="limit")
    return int(text)


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        # A "+" that was not escaped arrives as a space.
        moment = datetime.fromisoformat(text.replace(" ", "+"))
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ApiError("before must be the `next` of the page before.", code="bad_params", param="before")


def _entry(found: Conversation) -> dict[str, Any]:
    return {
        "id": str(found.id), "title": found.title, "model": found.model or None,
        "created_at": found.created_at.isoformat(), "updated_at": found.updated_at.isoformat(),
    }  # fmt: skip


def _message(found: TranscriptMessage) -> dict[str, Any]:
    fields = {
        "id": str(found.id), "role": found.role, "text": found.text, "created_at": found.created_at.isoformat(),
    }  # fmt: skip
    if found.generation_id is None:
        return fields
    if found.status == Status.ACCEPTED:
        return fields | {"correlation_id": str(found.generation_id), "status": "processing"}
    usage = {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.completion_tokens}
    ended = {"correlation_id": str(found.generation_id), "status": found.status, "reason": found.reason or None}
    failed = {"error": found.code, "message": found.message} if found.code else {}
    return fields | ended | failed | {"usage": usage | {"dropped_turns": found.dropped_turns}}
