"""Reads of the chat app: whose conversations there are, what the page shows, what the model is told.

An answer's text and state are its generation's; a message only points there. Each function costs a fixed number of
queries, however long the conversation is. What is foreign does not exist: not_found.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from django.db.models import Exists, OuterRef, Q

from chatproject import statements
from chatproject.accounts.models import User
from chatproject.chat.errors import Refusal, Refused
from chatproject.chat.models import Conversation, Message
from chatproject.contract.messages import Turn
from chatproject.generations.models import Generation

PAGE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptMessage:
    """One message as the page shows it. The fields from ``status`` on are of answers only."""

    id: uuid.UUID
    role: str  # user or assistant
    text: str
    created_at: datetime.datetime
    generation_id: uuid.UUID | None = None
    status: str = ""  # accepted: still being written, the page resumes it over the socket
    reason: str = ""
    code: str = ""
    message: str = ""  # why it failed, one sentence
    prompt_tokens: int = 0
    completion_tokens: int = 0
    decode_ms: int = 0
    dropped_turns: int = 0  # turns the model was not shown, because they did not fit its context


@dataclass(frozen=True, slots=True)
class Said:
    """One message as the model is told of it."""

    id: uuid.UUID
    role: str  # user or assistant
    text: str
    generation_id: uuid.UUID | None  # of an answer


# An answer's instance has thirty fields, and a request with the whole history again.
_SAID: Final = """
    SELECT message.id, message.role,
        CASE WHEN message.is_superseded THEN '' WHEN message.role = 'user' THEN message.text ELSE answered.answer END,
        message.generation_id, message.position, message.is_superseded
    FROM chat_message AS message LEFT JOIN generations_generation AS answered ON answered.id = message.generation_id
    WHERE message.conversation_id = %s ORDER BY message.position"""


def conversations_of(
    user: User, *, limit: int = PAGE, before: datetime.datetime | None = None, query: str = ""
) -> list[Conversation]:
    """Return the user's conversations, the last used first.

    ``before`` is the ``updated_at`` of the last one the page has; ``query`` is looked for in titles and in what the
    user wrote.
    """
    found = Conversation.objects.filter(user=user)
    if before is not None:
        found = found.filter(updated_at__lt=before)
    if query:
        wrote = Message.objects.filter(conversation=OuterRef("id"), is_superseded=False, text__icontains=query)
        found = found.filter(Q(title__icontains=query) | Exists(wrote))
    return list(found.order_by("-updated_at", "-id")[:limit])


def conversation(user: User, conversation_id: uuid.UUID | str) -> Conversation:
    """Return one conversation of the user. Raises Refused(not_found) for a foreign, unknown or malformed id."""
    found = Conversation.objects.filter(user=user, id=_uuid(conversation_id)).first()
    if found is None:
        raise Refused(Refusal.NOT_FOUND)
    return found


def transcript(user: User, conversation_id: uuid.UUID | str) -> list[TranscriptMessage]:
    """Return what the page shows of a conversation, oldest first, without what was edited away or answered again."""
    owned = conversation(user, conversation_id)
    shown = _messages_shown(owned.id)
    generations = _generations(shown)
    return [_transcript_message(message, generations.get(message.generation_id)) for message in shown]


def _messages_shown(conversation_id: uuid.UUID) -> list[Message]:
    return list(Message.objects.filter(conversation_id=conversation_id, is_superseded=False).order_by("position"))


def said_in(conversation_id: uuid.UUID) -> tuple[list[Said], int]:
    """Return what was said and not superseded, oldest first, and the next free position; in one statement.

    Superseded messages keep their positions, so the last one shown is not the last one there is.
    """
    rows = statements.execute_all(_SAID, statements.values(Message, conversation_id=conversation_id))
    said = [
        Said(id=_uuid(id_), role=role, text=text or "", generation_id=_uuid(generation_id) if generation_id else None)
        for id_, role, text, generation_id, _, is_superseded in rows
        if not is_superseded
    ]
    return said, rows[-1][4] + 1 if rows else 0


def history(system_prompt: str, said: Sequence[Said]) -> tuple[Turn, ...]:
    """Return the turns a model is shown for what was said; an answer cut short counts, an empty one does not."""
    turns = [Turn(role="system", text=system_prompt)] if system_prompt else []
    for message in said:
        if message.role == Message.Role.USER:
            turns.append(Turn(role="user", text=message.text))
        elif message.text:
            turns.append(Turn(role="assistant", text=message.text))
    return tuple(turns)


def _generations(messages: list[Message]) -> dict[uuid.UUID | None, Generation]:
    ids = [message.generation_id for message in messages if message.generation_id is not None]
    # The request holds the whole history again: leave it in the database.
    return {found.id: found for found in Generation.objects.filter(id__in=ids).defer("request")} if ids else {}


def _transcript_message(message: Message, generation: Generation | None) -> TranscriptMessage:
    if generation is None:
        return TranscriptMessage(
            id=message.id, role=message.role, text=message.text, created_at=message.created_at,
            generation_id=message.generation_id,
        )  # fmt: skip
    return TranscriptMessage(
        id=message.id, role=message.role, text=generation.answer, created_at=message.created_at,
        generation_id=generation.id, status=generation.status, reason=generation.reason, code=generation.code,
        message=generation.message, prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.completion_tokens, decode_ms=generation.decode_ms,
        dropped_turns=generation.dropped_turns,
    )  # fmt: skip


def _uuid(value: uuid.UUID | str) -> uuid.UUID:
    try:
        return value if isinstance(value, uuid.UUID) else uuid.UUID(value)
    except ValueError as error:
        raise Refused(Refusal.NOT_FOUND) from error
