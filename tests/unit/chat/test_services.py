"""Sending, editing, answering again, renaming and deleting, on the database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from chatproject.accounts.models import Plan, User
from chatproject.chat import conversations, selectors, services
from chatproject.chat.errors import Refusal, Refused
from chatproject.chat.models import Conversation, Message
from chatproject.chat.protocol import Regenerate, Send
from chatproject.generations import dispatch
from chatproject.generations.models import Generation, ServedModel, Status
from chatproject.generations.params import parse_params

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _quiet_redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What follows the commit is the durable job's, tested there; here no broker is needed.
    monkeypatch.setattr(dispatch, "announce", lambda request, text, then: None)
    return


@pytest.fixture
def alice() -> User:
    plan = Plan.objects.create(name="roomy", is_default=not Plan.objects.filter(is_default=True).exists())
    ServedModel.objects.get_or_create(slug="demo", defaults={"name": "Demo", "is_default": True})
    return User.objects.create_user("alice", password="a long pass phrase", plan=plan)


@pytest.fixture
def bob(alice: User) -> User:
    return User.objects.create_user("bob", password="a long pass phrase", plan=alice.plan)


def send(user: User, text: str, **fields: Any) -> services.SendResult:
    frame = Send(**{"id": str(uuid.uuid4()), "text": text, **fields})
    return services.send(user=user, frame=frame, generation_id=str(uuid.uuid4()), watcher="web.1")


def again(user: User, generation: str, **fields: Any) -> services.SendResult:
    frame = Regenerate(**{"id": str(uuid.uuid4()), "generation": uuid.UUID(generation), **fields})
    return services.regenerate(user=user, frame=frame, generation_id=str(uuid.uuid4()), watcher="web.1")


def answered(result: services.SendResult, text: str, status: str = Status.DONE) -> None:
    Generation.objects.filter(id=result.generation_id).update(status=status, answer=text)


def turns_of(result: services.SendResult) -> list[tuple[str, str]]:
    request = Generation.objects.get(id=result.generation_id).request
    return [(turn["role"], turn["text"]) for turn in request["turns"]]


def shown(user: User, result: services.SendResult) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in selectors.transcript(user, result.conversation_id)]


def refused(code: Refusal, call: Any, *args: Any, **kwargs: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code
    return caught.value


def nothing_more_than(conversations: int, messages: int, generations: int) -> None:
    found = (Conversation.objects.count(), Message.objects.count(), Generation.objects.count())
    assert found == (conversations, messages, generations)


def test_first_message_makes_a_conversation_with_a_title(alice: User) -> None:
    result = send(alice, "How do I bake bread?")
    conversation = Conversation.objects.get(id=result.conversation_id)
    assert (conversation.user, conversation.title, result.title) == (alice, "How do I bake bread?", conversation.title)
    assert shown(alice, result) == [("user", "How do I bake bread?"), ("assistant", "")]
    assert selectors.transcript(alice, result.conversation_id)[1].status == Status.ACCEPTED


def test_model_is_told_the_history_with_answers_cut_short_and_without_empty_ones(alice: User) -> None:
    first = send(alice, "one")
    answered(first, "answer one")
    second = send(alice, "two", conversation=uuid.UUID(first.conversation_id))
    answered(second, "answer tw", Status.CANCELLED)
    third = send(alice, "three", conversation=uuid.UUID(first.conversation_id))
    answered(third, "", Status.FAILED)
    fourth = send(alice, "four", conversation=uuid.UUID(first.conversation_id))
    assert turns_of(fourth) == [
        ("user", "one"), ("assistant", "answer one"), ("user", "two"), ("assistant", "answer tw"),
        ("user", "three"), ("user", "four"),
    ]  # fmt: skip


def test_same_id_again_is_the_same_message(alice: User) -> None:
    client_id = str(uuid.uuid4())
    first = send(alice, "hello", id=client_id)
    second = send(alice, "hello", id=client_id)
    assert first.is_new
    assert not second.is_new
    assert second == services.SendResult(**{**_fields(first), "is_new": False})
    nothing_more_than(1, 2, 1)


def test_same_id_with_other_words_is_refused(alice: User) -> None:
    client_id = str(uuid.uuid4())
    send(alice, "hello", id=client_id)
    refused(Refusal.ID_REUSED, send, alice, "hello!", id=client_id)
    nothing_more_than(1, 2, 1)


def test_two_users_may_use_the_same_id(alice: User, bob: User) -> None:
    client_id = str(uuid.uuid4())
    assert send(alice, "hello", id=client_id).is_new
    assert send(bob, "hello", id=client_id).is_new


def test_conversation_that_answers_takes_no_second_message(alice: User) -> None:
    first = send(alice, "one")
    refused(Refusal.CONVERSATION_BUSY, send, alice, "two", conversation=uuid.UUID(first.conversation_id))
    refused(Refusal.CONVERSATION_BUSY, again, alice, first.generation_id)
    nothing_more_than(1, 2, 1)
    assert shown(alice, first) == [("user", "one"), ("assistant", "")]


def test_edit_takes_the_place_of_the_message_and_all_after_it(alice: User) -> None:
    first = send(alice, "one")
    answered(first, "answer one")
    second = send(alice, "tow", conversation=uuid.UUID(first.conversation_id))
    answered(second, "answer tow")
    edit = send(alice, "two", conversation=uuid.UUID(first.conversation_id), replaces=uuid.UUID(second.message_id))
    answered(edit, "answer two")
    assert turns_of(edit) == [("user", "one"), ("assistant", "answer one"), ("user", "two")]
    assert shown(alice, edit) == [
        ("user", "one"), ("assistant", "answer one"), ("user", "two"), ("assistant", "answer two"),
    ]  # fmt: skip
    # What was edited away cannot be edited again, nor can an answer.
    for gone in (second.message_id, edit.answer_id, str(uuid.uuid4())):
        refused(
            Refusal.NOT_FOUND, send, alice, "x", conversation=uuid.UUID(first.conversation_id), replaces=uuid.UUID(gone)
        )


def test_answering_again_shows_one_answer_to_the_same_question(alice: User) -> None:
    first = send(alice, "one")
    answered(first, "poor answer")
    second = again(alice, first.generation_id)
    answered(second, "better answer")
    assert second.message_id == first.message_id
    assert turns_of(second) == [("user", "one")]
    assert shown(alice, second) == [("user", "one"), ("assistant", "better answer")]
    refused(Refusal.NOT_FOUND, again, alice, first.generation_id)
    third = send(alice, "two", conversation=uuid.UUID(first.conversation_id))
    assert turns_of(third) == [("user", "one"), ("assistant", "better answer"), ("user", "two")]


def test_foreign_and_unknown_ids_look_alike(alice: User, bob: User) -> None:
    first = send(alice, "secret")
    answered(first, "answer")
    mine = uuid.UUID(first.conversation_id)
    foreign = refused(Refusal.NOT_FOUND, send, bob, "hello", conversation=mine)
    unknown = refused(Refusal.NOT_FOUND, send, bob, "hello", conversation=uuid.uuid4())
    assert foreign.message == unknown.message
    refused(Refusal.NOT_FOUND, again, bob, first.generation_id)
    refused(Refusal.NOT_FOUND, selectors.transcript, bob, mine)
    refused(Refusal.NOT_FOUND, conversations.rename, user=bob, conversation_id=mine, title="stolen")
    refused(Refusal.NOT_FOUND, conversations.delete, user=bob, conversation_id=mine)
    assert selectors.conversations_of(bob) == []
    nothing_more_than(1, 2, 1)


def test_refusal_leaves_no_trace(alice: User) -> None:
    refused(Refusal.MODEL_UNKNOWN, send, alice, "hello", model="no-such-model")
    nothing_more_than(0, 0, 0)


def test_editing_the_first_message_renews_an_automatic_title(alice: User) -> None:
    first = send(alice, "one")
    Generation.objects.update(status="done")
    edited = send(alice, "another", conversation=uuid.UUID(first.conversation_id), replaces=uuid.UUID(first.message_id))
    assert edited.title == "another"
    Generation.objects.update(status="done")
    conversations.rename(user=alice, conversation_id=first.conversation_id, title="Mine")
    again = send(alice, "third", conversation=uuid.UUID(first.conversation_id), replaces=uuid.UUID(edited.message_id))
    assert again.title == "Mine"


def test_rename_keeps_the_title_when_more_is_said(alice: User) -> None:
    first = send(alice, "one")
    answered(first, "answer")
    conversations.rename(user=alice, conversation_id=first.conversation_id, title="  My\n\u202etitle ")
    assert send(alice, "two", conversation=uuid.UUID(first.conversation_id)).title == "My title"
    refused(Refusal.BAD_PARAMS, conversations.rename, user=alice, conversation_id=first.conversation_id, title=" \n")
    refused(
        Refusal.BAD_PARAMS, conversations.rename, user=alice, conversation_id=first.conversation_id, title="x" * 121
    )


def test_delete_forgets_the_generations_and_a_retry_does_not_bring_them_back(alice: User) -> None:
    client_id = str(uuid.uuid4())
    empty = conversations.create(user=alice)
    first = send(alice, "one", id=client_id, conversation=empty.id)
    conversations.delete(user=alice, conversation_id=first.conversation_id)
    nothing_more_than(0, 0, 0)
    refused(Refusal.NOT_FOUND, send, alice, "one", id=client_id, conversation=empty.id)


def test_queries_do_not_grow_with_the_conversation(alice: User) -> None:
    first = send(alice, "one")
    answered(first, "answer")
    counts = []
    for number in range(4):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            result = send(alice, f"more {number}", conversation=uuid.UUID(first.conversation_id))
        counts.append(len(queries))
        answered(result, "answer")
    assert len(set(counts)) == 1, counts
    assert counts[0] <= 30, [query["sql"][:120] for query in queries]
    with CaptureQueriesContext(connection) as queries:
        assert len(selectors.transcript(alice, first.conversation_id)) == 10
    assert len(queries) == 3


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Hello", "Hello"),
        ("  two\n lines\x07 ", "two lines"),
        ("word " * 30, "word word word word word word word word word word word word…"),
        ("a" * 70, "a" * 60 + "…"),
        ("漢" * 61, "漢" * 60 + "…"),
        ("\u202eevil", "evil"),
        ("👩‍👧 family", "👩‍👧 family"),
        ("\u2066", "New chat"),
    ],
)
def test_title_is_one_short_line(text: str, title: str) -> None:
    assert conversations.title_of(text) == title


def test_list_is_paged_and_searched_by_last_use(alice: User) -> None:
    results = [send(alice, text) for text in ("about bread", "about cheese", "about wine")]
    answered(results[0], "answer")
    send(alice, "and butter", conversation=uuid.UUID(results[0].conversation_id))
    titles = [found.title for found in selectors.conversations_of(alice)]
    assert titles == ["about bread", "about wine", "about cheese"]
    first = selectors.conversations_of(alice, limit=2)
    rest = selectors.conversations_of(alice, limit=2, before=first[-1].updated_at)
    assert [found.title for found in rest] == ["about cheese"]
    assert [found.title for found in selectors.conversations_of(alice, query="BUTTER")] == ["about bread"]
    assert selectors.conversations_of(alice, query="nothing") == []


def _fields(result: services.SendResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in services.SendResult.__dataclass_fields__}


def test_the_digest_of_a_body_is_what_it_was_in_the_first_version() -> None:
    """Another one would take a retry after an update for another message with the same id."""
    wishes = {"temperature": 0.5, "max_tokens": 4, "stop": ["a", "é"], "logit_bias": {"7": -1.5, "12": 2}}
    params, id_ = parse_params(wishes), uuid.UUID("11111111-2222-4333-8444-555555555555")
    bodies = [
        Send(id="x", text="Hé \U0001f34e", conversation=id_, params=params, model="demo", replaces=id_),
        Send(id="y", text="Hi"),
        Regenerate(id="z", generation=id_, params=params),
    ]
    assert [services._sha256(body)[:16] for body in bodies] == [
        "b16055198e960dc3", "31fe4ea6ff57ab91", "3e9ddc6df69063bc"
    ]  # fmt: skip
