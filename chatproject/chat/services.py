"""What a user says, accepted: a message, an edit, a wish for another answer. Each is one transaction, or nothing.

Knows no socket and no Redis: the durable job is admission's, here its messages are kept in order. The conversation's
row is locked first, so that positions and history are those of one moment. What comes again under its id is the same
message; that is why `second_try` may send it once more.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError

from chatproject import statements
from chatproject.accounts.models import User
from chatproject.chat import conversations, second_try, selectors
from chatproject.chat.errors import Refusal, Refused
from chatproject.chat.models import Conversation, Message
from chatproject.chat.protocol import Regenerate, Send
from chatproject.chat.selectors import Said
from chatproject.contract.messages import Turn
from chatproject.generations import admission
from chatproject.generations.models import Generation

_AS_TEXT = json.JSONEncoder(sort_keys=True, default=str)
Transact = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """What was accepted; the same again for a retry, then with ``is_new`` False."""

    conversation_id: str
    title: str
    message_id: str  # the user's
    answer_id: str  # the assistant's message
    generation_id: str  # of an earlier try when not ``is_new``
    is_new: bool


def send(*, user: User, frame: Send, generation_id: str, watcher: str | None, step_by_step: bool = False) -> SendResult:
    """Accept a message and the answer to it. Raises Refused; nothing is stored then, unless it ``is_unknown``.

    A frame with ``replaces`` takes the place of that message: it and all that followed are superseded. With
    ``step_by_step`` it is not tried at once first: `try_send` did.
    """
    transact = statements.step_by_step if step_by_step else statements.at_once
    try:
        return _send(transact, user, frame, generation_id, watcher)
    except statements.OutcomeUnknown as error:
        return second_try.once_more(error, user, lambda now: _send(second_try.soon, now, frame, generation_id, watcher))


def try_send(*, user: User, frame: Send, generation_id: str, watcher: str | None) -> SendResult | None:
    """As `send`, but ``user`` may be as some time ago; None, and nothing is stored, when it is not accepted like this.

    Then it is for `send` to say why, with the user as they are now.
    """
    try:
        with statements.together():
            return _write(user, frame, _sha256(frame), generation_id, watcher)
    except (IntegrityError, Refused):
        return None
    except statements.OutcomeUnknown as error:
        return second_try.once_more(error, user, lambda now: _send(second_try.soon, now, frame, generation_id, watcher))


def _send(transact: Transact, user: User, frame: Send, generation_id: str, watcher: str | None) -> SendResult:
    body = _sha256(frame)
    try:
        return transact(lambda: _write(user, frame, body, generation_id, watcher))
    except Refused as error:
        refused = error
    except IntegrityError:
        refused = Refused(Refusal.CONVERSATION_BUSY)
    # Asked last, because hardly any message comes twice. What it replaced, for one, is replaced by now.
    earlier = _earlier(user, frame.id, body)
    if earlier is None:
        raise admission.counted(refused)
    return earlier


def _write(user: User, frame: Send, body: str, generation_id: str, watcher: str | None) -> SendResult:
    said: list[Said]
    if frame.conversation is not None:
        conversation = conversations.lock(user, frame.conversation)
        said, position = selectors.said_in(conversation.id)
    else:
        conversation, said, position = _new(user, frame), [], 0
    kept = said
    if frame.replaces is not None:
        kept = _before(said, lambda each: each.id == frame.replaces and each.role == Message.Role.USER)
    turns = (*selectors.history(conversation.system_prompt, kept), Turn(role="user", text=frame.text))
    generation = admission.accept_new(_draft(user, frame, body, conversation, turns, generation_id, watcher))
    if not conversation.title or (conversation.is_title_automatic and not kept):
        conversation.title = conversations.title_of(frame.text)
    if frame.model:
        conversation.model = frame.model
    conversations.touch(conversation)
    _supersede(said[len(kept) :])
    asked_id, answer_id = uuid.uuid4(), uuid.uuid4()
    statements.insert_values(
        Message,
        {"id": asked_id, "conversation_id": conversation.id, "position": position, "role": Message.Role.USER.value,
         "text": frame.text},
        _answer(conversation, position + 1, generation, answer_id),
    )  # fmt: skip
    return _result(conversation, asked_id, answer_id, generation.id, is_new=True)


def regenerate(*, user: User, frame: Regenerate, generation_id: str, watcher: str | None) -> SendResult:
    """Answer the same user message again; the answer it replaces and all that followed are superseded.

    Raises Refused, as `send` does.
    """
    try:
        return _regenerate(statements.step_by_step, user, frame, generation_id, watcher)
    except statements.OutcomeUnknown as error:
        return second_try.once_more(
            error, user, lambda now: _regenerate(second_try.soon, now, frame, generation_id, watcher)
        )


def _regenerate(
    transact: Transact, user: User, frame: Regenerate, generation_id: str, watcher: str | None
) -> SendResult:
    body = _sha256(frame)
    earlier = _earlier(user, frame.id, body)
    if earlier is not None:
        return earlier
    try:
        written = transact(lambda: _write_again(user, frame, body, generation_id, watcher))
    except Refused:
        # It may have come while this one waited for it, and what it replaced is replaced.
        earlier = _earlier(user, frame.id, body)
        if earlier is None:
            raise
        return earlier
    return written or _earlier_or_lost(user, frame.id, body)


def _write_again(
    user: User, frame: Regenerate, body: str, generation_id: str, watcher: str | None
) -> SendResult | None:
    """Return None when it came before."""
    replaced = Message.objects.filter(generation_id=frame.generation, conversation__user=user).first()
    if replaced is None:
        raise Refused(Refusal.NOT_FOUND)
    conversation = conversations.lock(user, replaced.conversation_id)
    said, position = selectors.said_in(conversation.id)
    kept = _before(said, lambda each: each.generation_id == frame.generation)
    asked = next((each for each in reversed(kept) if each.role == Message.Role.USER), None)
    if asked is None:
        raise Refused(Refusal.NOT_FOUND)
    turns = selectors.history(conversation.system_prompt, kept)
    accepted = admission.accept(_draft(user, frame, body, conversation, turns, generation_id, watcher))
    if not accepted.is_new:
        return None
    conversations.touch(conversation)
    _supersede(said[len(kept) :])
    answer_id = uuid.uuid4()
    statements.insert_values(Message, _answer(conversation, position, accepted.generation, answer_id))
    return _result(conversation, asked.id, answer_id, accepted.generation.id, is_new=True)


def _sha256(frame: Send | Regenerate) -> str:
    # The generation's `body`: all that the client said but its id, so that the same id with other words is seen.
    # Not `dataclasses.asdict`: it copies all of it. The text must stay as it is: a retry may come after an update.
    fields = {"kind": type(frame).__name__, **{name: getattr(frame, name) for name in frame.__slots__ if name != "id"}}
    fields["params"] = {name: getattr(frame.params, name) for name in frame.params.__slots__}
    return hashlib.sha256(_AS_TEXT.encode(fields).encode()).hexdigest()


def _earlier(user: User, client_id: str, body_sha256: str) -> SendResult | None:
    found = Generation.objects.filter(user=user, client_id=client_id).only("id", "body_sha256").first()
    if found is None:
        return None
    if found.body_sha256 != body_sha256:
        raise Refused(Refusal.ID_REUSED)
    answer = Message.objects.select_related("conversation").filter(generation_id=found.id).first()
    if answer is None:
        raise Refused(Refusal.NOT_FOUND, "This message was sent before, and its conversation was deleted since.")
    earlier = Message.objects.filter(conversation_id=answer.conversation_id, position__lt=answer.position)
    asked = earlier.filter(role=Message.Role.USER).order_by("-position")[0]
    return _result(answer.conversation, asked.id, answer.id, found.id, is_new=False)


def _earlier_or_lost(user: User, client_id: str, body_sha256: str) -> SendResult:
    earlier = _earlier(user, client_id, body_sha256)
    if earlier is None:
        raise Refused(Refusal.UNAVAILABLE)
    return earlier


def _new(user: User, frame: Send) -> Conversation:
    if frame.replaces is not None:
        raise Refused(Refusal.NOT_FOUND)
    return Conversation(user_id=user.pk)


def _before(said: list[Said], is_replaced: Callable[[Said], bool]) -> list[Said]:
    for index, message in enumerate(said):
        if is_replaced(message):
            return said[:index]
    raise Refused(Refusal.NOT_FOUND)


def _draft(
    user: User, frame: Send | Regenerate, body: str, conversation: Conversation, turns: tuple[Turn, ...],
    generation_id: str, watcher: str | None,
) -> admission.Draft:  # fmt: skip
    return admission.Draft(
        generation_id=generation_id, user=user, client_id=frame.id, thread=conversation.id,
        model=frame.model or conversation.model or None, turns=turns, params=frame.params, origin="chat",
        body_sha256=body, watcher=watcher,
    )  # fmt: skip


def _supersede(replaced: Sequence[Said]) -> None:
    if replaced:
        Message.objects.filter(id__in=[message.id for message in replaced]).update(is_superseded=True)


def _answer(
    conversation: Conversation, position: int, generation: Generation, answer_id: uuid.UUID
) -> dict[str, object]:
    return {
        "id": answer_id, "conversation_id": conversation.id, "position": position,
        "role": Message.Role.ASSISTANT.value, "generation_id": generation.id,
    }  # fmt: skip


def _result(
    conversation: Conversation, asked_id: uuid.UUID, answer_id: uuid.UUID, generation_id: uuid.UUID, *, is_new: bool
) -> SendResult:
    return SendResult(
        conversation_id=str(conversation.id), title=conversation.title, message_id=str(asked_id),
        answer_id=str(answer_id), generation_id=str(generation_id), is_new=is_new,
    )  # fmt: skip
