"""Writes of a conversation itself: made, renamed, deleted, locked and touched by each message. A title is one line.

Knows nothing of what is said in it, and of messages only that they go with it.
"""

from __future__ import annotations

import unicodedata
import uuid

from django.db import transaction
from django.utils import timezone

from chatproject import statements
from chatproject.accounts.models import User
from chatproject.chat import selectors
from chatproject.chat.errors import Refusal, Refused
from chatproject.chat.models import Conversation
from chatproject.generations import services as generation_services
from chatproject.generations.models import Generation

TITLE_CHARACTERS = 60
TITLE_MAX = 120


def create(*, user: User, title: str = "", model: str = "", system_prompt: str = "") -> Conversation:
    """Make an empty conversation; without a title it gets one from its first message."""
    cleaned = clean_title(title)[:TITLE_MAX]
    return Conversation.objects.create(
        user=user, title=cleaned, is_title_automatic=not cleaned, model=model, system_prompt=system_prompt
    )


def rename(*, user: User, conversation_id: uuid.UUID | str, title: str) -> Conversation:
    """Give a conversation a title of the user's own. Raises Refused: bad_params when empty or too long, not_found."""
    cleaned = clean_title(title)
    if not cleaned:
        raise Refused(Refusal.BAD_PARAMS, "title: write a title; it is empty.")
    if len(cleaned) > TITLE_MAX:
        raise Refused(Refusal.BAD_PARAMS, f"title: at most {TITLE_MAX} characters; this one has {len(cleaned)}.")
    conversation = selectors.conversation(user, conversation_id)
    conversation.title, conversation.is_title_automatic = cleaned, False
    conversation.save(update_fields=["title", "is_title_automatic"])
    return conversation


def delete(*, user: User, conversation_id: uuid.UUID | str) -> None:
    """Delete a conversation with its messages; what it is still answering is stopped. The ledger stays."""
    with transaction.atomic():
        # Locked, so that no message is accepted between the list of its generations and the delete.
        conversation = lock(user, selectors.conversation(user, conversation_id).id)
        generations = Generation.objects.filter(user=user, thread=conversation.id).values_list("id", flat=True)
        generation_services.forget(generation_ids=list(generations))
        conversation.delete()


def lock(user: User, conversation_id: uuid.UUID) -> Conversation:
    """Return one conversation of the user, locked until the transaction ends. Raises Refused(not_found)."""
    found = statements.lock(Conversation, id=conversation_id, user_id=user.pk)
    if found is None:
        raise Refused(Refusal.NOT_FOUND)
    return found


def touch(conversation: Conversation) -> None:
    """Store ``conversation`` as used now. A new one is inserted here, only after admission took its first message."""
    conversation.updated_at = timezone.now()
    if conversation._state.adding:
        statements.insert(conversation)
    else:
        statements.change(
            Conversation, {"id": conversation.id},
            title=conversation.title, model=conversation.model, updated_at=conversation.updated_at,
        )  # fmt: skip


def title_of(text: str) -> str:
    """Return a title for a conversation that begins with ``text``: one line, cut at a word."""
    cleaned = clean_title(text)
    if len(cleaned) <= TITLE_CHARACTERS:
        return cleaned or "New chat"
    head = cleaned[: TITLE_CHARACTERS + 1]
    cut = head.rfind(" ")
    # A text without spaces (a link, Chinese) is cut where it stands.
    head = head[:cut] if cut >= TITLE_CHARACTERS // 2 else cleaned[:TITLE_CHARACTERS]
    return head.rstrip(" ,.;:-") + "…"


def clean_title(text: str) -> str:
    """Return ``text`` as one line, without control characters and without those that turn its direction around."""
    kept = (" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in text if char not in _BIDI)
    return " ".join("".join(kept).split())


# Invisible, and they let a title rewrite the page's line around it. Joiners stay: emoji and Persian need them.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
