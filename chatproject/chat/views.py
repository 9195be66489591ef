"""The chat page, and the small answers it fetches: list, transcript, one answer, rename, delete.

Thin: rules are in `conversations`, reads in `selectors`; the live answer comes over the socket, never from here.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_POST

from chatproject.accounts.models import User
from chatproject.chat import conversations as conversation_services
from chatproject.chat import markdown, selectors
from chatproject.chat.errors import Refusal, Refused
from chatproject.chat.models import Conversation
from chatproject.chat.selectors import TranscriptMessage
from chatproject.generations import selectors as generation_selectors
from chatproject.generations.models import Status

LIST_PAGE = 40
SUGGESTIONS = ("What can you do?", "How do I get an API key?", "Tell me about Mars.", "What kind of model are you?")
_HTTP_STATUS = {Refusal.NOT_FOUND: 404}

View = Callable[..., HttpResponseBase]


def json_endpoint(view: View) -> View:
    """Answer the page's own requests: 401 instead of a sign-in page, and a refusal as JSON with its code."""

    @functools.wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not request.user.is_authenticated:
            return _error("signed_out", "Sign in again; your text is kept.", status=401)
        try:
            return view(request, *args, **kwargs)
        except Refused as refused:
            return _error(refused.code, refused.message, status=_HTTP_STATUS.get(refused.code, 400))

    return never_cache(wrapped)


@never_cache
@login_required
@ensure_csrf_cookie
@require_GET
def page(request: HttpRequest, conversation_id: uuid.UUID | None = None) -> HttpResponse:
    """Show the chat page, with one conversation or a new one."""
    user = _user(request)
    try:
        opened = _transcript(user, conversation_id) if conversation_id else None
    except Refused:
        return render(request, "404.html", {"what": "conversation"}, status=404)
    models = [{"slug": model.slug, "name": model.name} for model in generation_selectors.models_for(user)]
    data = {
        "opened": opened,
        "list": _list(user),
        "models": models,
        "suggestions": SUGGESTIONS,
        "isDemoModel": not settings.CHAT_MODEL,
        "socket": "/ws/chat/",
    }
    title = opened["conversation"]["title"] if opened else "New chat"
    return render(request, "chat/page.html", {"data": data, "title": title, "is_demo_model": not settings.CHAT_MODEL})


@json_endpoint
@require_GET
def conversations(request: HttpRequest) -> HttpResponse:
    """Return one page of the list: `?before=` goes on, `?q=` searches titles."""
    before = _moment(request.GET.get("before", ""))
    # PostgreSQL takes no NUL.
    query = request.GET.get("q", "").replace("\0", "").strip()[:120]
    return JsonResponse(_list(_user(request), before=before, query=query))


@json_endpoint
@require_GET
def transcript(request: HttpRequest, conversation_id: uuid.UUID) -> HttpResponse:
    """Return what the page shows of one conversation."""
    return JsonResponse(_transcript(_user(request), conversation_id))


@json_endpoint
@require_GET
def answer(request: HttpRequest, conversation_id: uuid.UUID, generation_id: uuid.UUID) -> HttpResponse:
    """Return one stored answer, rendered: what replaces the streamed text when it is finished."""
    generation = generation_selectors.owned(user_id=_user(request).id, generation_id=generation_id)
    if generation.thread != conversation_id:
        raise Refused(Refusal.NOT_FOUND)
    return JsonResponse(
        {
            "status": generation.status,
            "text": generation.answer,
            "sha256": generation.sha256,
            "html": markdown.render(generation.answer),
        }
    )


@json_endpoint
@require_POST
def rename(request: HttpRequest, conversation_id: uuid.UUID) -> HttpResponse:
    """Give a conversation the user's own title."""
    renamed = conversation_services.rename(
        user=_user(request), conversation_id=conversation_id, title=request.POST.get("title", "")
    )
    return JsonResponse(_entry(renamed))


@json_endpoint
@require_POST
def delete(request: HttpRequest, conversation_id: uuid.UUID) -> HttpResponse:
    """Delete a conversation; what it is answering is stopped."""
    conversation_services.delete(user=_user(request), conversation_id=conversation_id)
    return JsonResponse({"deleted": str(conversation_id)})


def favicon(request: HttpRequest) -> HttpResponse:
    """Send browsers that ask at the root to the icon."""
    return redirect(f"{settings.STATIC_URL}favicon.svg", permanent=True)


def _user(request: HttpRequest) -> User:
    assert isinstance(request.user, User)
    return request.user


def _error(code: str, message: str, *, status: int) -> JsonResponse:
    return JsonResponse({"code": str(code), "message": message}, status=status)


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise Refused(Refusal.BAD_PARAMS, "before: not a moment in time with its zone.")


def _list(user: User, *, before: datetime | None = None, query: str = "") -> dict[str, Any]:
    found = selectors.conversations_of(user, limit=LIST_PAGE + 1, before=before, query=query)
    shown = found[:LIST_PAGE]
    goes_on = len(found) > LIST_PAGE
    return {
        "conversations": [_entry(conversation) for conversation in shown],
        "next": shown[-1].updated_at.isoformat() if goes_on else None,
    }


def _entry(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": str(conversation.id),
        "title": conversation.title or "New chat",
        "updated_at": conversation.updated_at.isoformat(),
    }


def _transcript(user: User, conversation_id: uuid.UUID) -> dict[str, Any]:
    found = selectors.conversation(user, conversation_id)
    return {
        "conversation": _entry(found) | {"model": found.model},
        "messages": [_message(message) for message in selectors.transcript(user, conversation_id)],
    }


def _message(message: TranscriptMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": str(message.id), "role": message.role, "text": message.text}
    if message.generation_id is None:
        return fields
    is_ended = message.status != Status.ACCEPTED
    return fields | {
        "generation": str(message.generation_id),
        "status": message.status,
        "reason": message.reason,
        "code": message.code,
        "message": message.message,
        "html": markdown.render(message.text) if is_ended and message.text else "",
        "usage": {
            "prompt_tokens": message.prompt_tokens,
            "completion_tokens": message.completion_tokens,
            "dropped_turns": message.dropped_turns,
            "decode_ms": message.decode_ms,
        },
    }
