"""A user who was seen before is not read again, and yet has the rights of this moment and no others."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from chatproject.accounts import known
from chatproject.accounts.models import DailyUse, Plan, User
from chatproject.chat import consumers, identity
from chatproject.chat.errors import Refused
from chatproject.chat.identity import Unwelcome
from chatproject.chat.models import Conversation
from chatproject.chat.protocol import Send
from chatproject.chat.services import SendResult
from chatproject.generations import dispatch
from chatproject.generations.models import Generation, ServedModel, Status
from tests.unit import races
from tests.unit.chat import race


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What follows the commit is the durable job's, tested there; here no broker is needed.
    monkeypatch.setattr(dispatch, "announce", lambda request, text, then: None)
    known.forget_all()
    yield
    known.forget_all()


@pytest.fixture
def alice(transactional_db: None) -> User:
    plan = Plan.objects.create(name="roomy", is_default=not Plan.objects.filter(is_default=True).exists())
    ServedModel.objects.get_or_create(slug="demo", defaults={"name": "Demo", "is_default": True})
    return User.objects.create_user("alice", plan=plan)


def send(user: User, client_id: str = "", conversation: uuid.UUID | None = None) -> SendResult:
    frame = Send(id=client_id or str(uuid.uuid4()), text="Tell me about Mars", conversation=conversation)
    return consumers._send(str(user.pk), frame, str(uuid.uuid4()), "web.1")


def test_the_next_message_does_not_look_at_its_sender(alice: User) -> None:
    send(alice)
    with CaptureQueriesContext(connection) as sent:
        send(alice)
    assert not any('FROM "accounts_user" WHERE' in query["sql"] for query in sent.captured_queries)
    if connection.vendor == "postgresql":
        # All of it in one round trip: Django notes a BEGIN and a COMMIT, of which psycopg sends none.
        assert sum(query["sql"] not in ("BEGIN", "COMMIT") for query in sent.captured_queries) == 1
    assert Generation.objects.count() == 2


def test_a_message_in_a_long_conversation_reads_twice(alice: User) -> None:
    first = send(alice)
    for _ in range(4):
        Generation.objects.update(status=Status.DONE, answer="It is red.")
        with CaptureQueriesContext(connection) as sent:
            send(alice, conversation=uuid.UUID(first.conversation_id))
    statements_ = [query["sql"] for query in sent.captured_queries]
    assert sum("SELECT" in sql.split("(")[0] for sql in statements_) <= 2  # the conversation, and what was said in it
    if connection.vendor == "postgresql":
        assert sum(sql not in ("BEGIN", "COMMIT") for sql in statements_) == 3
        assert "FOR UPDATE" in next(sql for sql in statements_ if "SELECT" in sql)
    turns = Generation.objects.order_by("-accepted_at")[0].request["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4 + ["user"]
    assert {turn["text"] for turn in turns} == {"Tell me about Mars", "It is red."}


@pytest.mark.parametrize("change", ["deactivated", "deleted"])
def test_who_may_not_chat_any_more_is_sent_away_at_once(alice: User, change: str) -> None:
    send(alice)
    if change == "deleted":
        Conversation.objects.all().delete()
        User.objects.filter(pk=alice.pk).delete()
    else:
        User.objects.filter(pk=alice.pk).update(is_active=False)
    count = Generation.objects.count()
    with pytest.raises(Unwelcome) as sent_away:
        send(alice)
    is_there = change == "deactivated"
    assert sent_away.value.code == (identity.MAY_NOT_CHAT if is_there else identity.NOT_SIGNED_IN)
    assert Generation.objects.count() == count


def test_limits_count_from_the_next_message_on_whether_they_rise_or_fall(alice: User) -> None:
    send(alice)
    User.objects.filter(pk=alice.pk).update(concurrent=1)
    with pytest.raises(Refused, match="1 answers at a time"):
        send(alice)
    User.objects.filter(pk=alice.pk).update(concurrent=2)
    send(alice)
    with pytest.raises(Refused, match="2 answers at a time"):
        send(alice)
    User.objects.filter(pk=alice.pk).update(concurrent=None, tokens_per_day=1)
    with pytest.raises(Refused, match="of your 1 a day"):
        send(alice)
    assert (Generation.objects.count(), DailyUse.objects.get().generations) == (2, 2)


def test_another_plan_counts_from_the_next_message_on(alice: User) -> None:
    send(alice)
    slow = Plan.objects.create(name="slow", lane="batch", requests_per_minute=2)
    User.objects.filter(pk=alice.pk).update(plan=slow)
    send(alice)
    assert Generation.objects.order_by("-accepted_at")[0].lane == "batch"
    with pytest.raises(Refused, match="2 requests per minute"):
        send(alice)


def test_a_retry_by_somebody_known_is_the_earlier_answer(alice: User) -> None:
    first = send(alice, "one")
    again = send(alice, "one")
    assert (again.generation_id, again.is_new, first.is_new) == (first.generation_id, False, True)
    assert Generation.objects.count() == 1


def test_only_so_many_are_remembered(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MOST", 2)
    others = [User.objects.create_user(f"user{number}") for number in range(2)]
    for user in (alice, others[0], alice, others[1]):
        known.read(str(user.pk))
    remembered = [known.last_seen(str(user.pk)) is not None for user in (alice, *others)]
    assert remembered == [True, False, True]


@pytest.mark.parametrize("database", races.DATABASES)
def test_threads_that_send_at_one_moment_stay_within_the_limits(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = races.run("tests.unit.chat.race", database, tmp_path, request)
    assert found == {name: [race.LIMIT] * 2 for name in ("concurrent", "requests_per_minute")}
