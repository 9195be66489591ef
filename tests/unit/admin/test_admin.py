"""Operators find what they need in the admin, in a bounded number of queries, and read no one's words unasked."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from chatproject import redis_client
from chatproject.accounts import keys, quotas
from chatproject.accounts.models import ApiKey, DailyUse, Plan, Reservation, UsageRecord, User
from chatproject.chat.models import Conversation, Message
from chatproject.contract import names
from chatproject.contract.messages import ModelStatus
from chatproject.generations.models import Generation, ServedModel, Status
from tests.servers import free_port

pytestmark = pytest.mark.django_db
SECRET = "the words nobody else may read"
LISTS = ("accounts_user", "accounts_plan", "accounts_apikey", "accounts_dailyuse", "accounts_reservation",
         "accounts_usagerecord", "generations_servedmodel", "generations_generation", "chat_conversation")  # fmt: skip


@pytest.fixture(autouse=True)
def _redis_away(settings: Any) -> Any:
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    redis_client.client.cache_clear()
    yield
    redis_client.client.cache_clear()


@pytest.fixture
def operator() -> Client:
    call_command("user", "create", "oscar", "--password", "x", "--staff", verbosity=0)
    return signed_in("oscar")


@pytest.fixture
def reader() -> Client:
    User.objects.create_superuser("root")
    return signed_in("root")


def signed_in(name: str) -> Client:
    client = Client()
    client.force_login(User.objects.get(username=name))
    return client


def populate(count: int, *, start: int = 0) -> None:
    """Give ``count`` users each a plan or none, a key, a day's use, a conversation with an answer, a ledger line."""
    plans = [*Plan.objects.all(), None]
    ServedModel.objects.get_or_create(slug="m0", defaults={"name": "M0"})
    for n in range(start, start + count):
        user = User.objects.create_user(f"user{n}", plan=plans[n % len(plans)])
        keys.create(user=user, name="k")
        quotas.reserve(user=user, generation_id=uuid.uuid4(), tokens=70, gpu_seconds=2, now=timezone.now())
        thread = Conversation.objects.create(user=user, title=SECRET, system_prompt=SECRET)
        status = Status.ACCEPTED if n % 2 else Status.DONE
        row = generation(user, thread=thread.pk, status=status)
        Message.objects.create(conversation=thread, position=1, role="user", text=SECRET)
        Message.objects.create(conversation=thread, position=2, role="assistant", generation_id=row.pk)
        UsageRecord.objects.create(generation_id=row.pk, user=user, username=user.username, model="m0")
        ServedModel.objects.create(slug=f"m{n + 1}", name=f"M{n + 1}").plans.set(Plan.objects.all()[:2])


def generation(user: User, **fields: Any) -> Generation:
    now = timezone.now()
    request = {"turns": [{"role": "user", "text": SECRET}]}
    ended = now if fields.get("status", Status.ACCEPTED) != Status.ACCEPTED else None
    return Generation.objects.create(**{
        "user": user, "client_id": str(uuid.uuid4()), "model": "m0", "lane": "interactive", "request": request,
        "expires_at": now + timedelta(minutes=10), "answer": SECRET if ended else "", "ended_at": ended, **fields,
    })  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_takes_as_many_queries_for_many_rows_as_for_few(reader: Client, name: str) -> None:
    address = reverse(f"admin:{name}_changelist")
    populate(6)
    reader.get(address)
    with CaptureQueriesContext(connection) as few:
        assert reader.get(address).status_code == 200
    populate(12, start=6)
    with CaptureQueriesContext(connection) as many:
        assert reader.get(address).status_code == 200
    assert len(many) <= len(few) < 20


def test_every_page_works_under_the_policy(reader: Client) -> None:
    populate(2)
    pages = [reverse("admin:index"), reverse("admin:login"), reverse("admin:accounts_apikey_add")]
    pages += [reverse(f"admin:{name}_changelist") for name in LISTS]
    for table in (User, Plan, ApiKey, DailyUse, Reservation, UsageRecord, ServedModel, Generation, Conversation):
        row: Any = table.objects.all()[0]
        pages.append(reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk]))
    for page in pages:
        answer = reader.get(page, follow=True)
        assert answer.status_code == 200, page
        policy = answer["Content-Security-Policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        html = answer.content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)[^>]*>|<style|\son\w+=\"", html), page


@pytest.mark.parametrize("name", LISTS)
def test_search_filters_and_strange_words_do_no_harm(reader: Client, name: str) -> None:
    populate(1)
    for words in ("user0", str(uuid.uuid4()), "💥' OR 1=1", "a\x00b"):
        assert reader.get(reverse(f"admin:{name}_changelist"), {"q": words}).status_code == 200


def test_an_operator_sees_no_words_and_a_reader_does(operator: Client, reader: Client) -> None:
    populate(2)
    thread = Conversation.objects.all()[0]
    done = Generation.objects.get(status=Status.DONE)
    pages = [
        reverse("admin:chat_conversation_changelist"),
        reverse("admin:chat_conversation_change", args=[thread.pk]),
        reverse("admin:chat_conversation_delete", args=[thread.pk]),
        reverse("admin:generations_generation_changelist"),
        reverse("admin:generations_generation_change", args=[done.pk]),
        reverse("admin:index"),
    ]
    for page in pages:
        answer = operator.get(page)
        assert answer.status_code == 200, page
        assert SECRET not in answer.content.decode(), page
    assert SECRET in reader.get(pages[1]).content.decode()
    assert reader.get(pages[4]).content.decode().count(SECRET) == 2


def test_users_show_todays_use_against_their_limits(operator: Client) -> None:
    populate(1)
    page = operator.get(reverse("admin:accounts_user_changelist")).content.decode()
    assert "0 / 200,000 (+70 held)" in page
    user = User.objects.get(username="user0")
    assert "(+70 held)" in operator.get(reverse("admin:accounts_user_change", args=[user.pk])).content.decode()


def test_a_new_key_is_shown_once_and_its_digest_never(operator: Client) -> None:
    alice = User.objects.create_user("alice")
    fields = {"user": str(alice.pk), "name": "laptop", "scopes": ["chat"]}
    page = operator.post(reverse("admin:accounts_apikey_add"), fields, follow=True).content.decode()
    shown = re.search(r"again: (sk-chat-[\w-]{43})", page)
    assert shown is not None
    assert keys.authenticate(shown.group(1)) == alice
    key = ApiKey.objects.get()
    again = operator.get(reverse("admin:accounts_apikey_change", args=[key.pk])).content.decode()
    assert key.digest not in page + again
    assert "not shown again" not in again
    operator.post(
        reverse("admin:accounts_apikey_changelist"),
        {"action": "revoke", "_selected_action": [str(key.pk)]},
        follow=True,
    )
    key.refresh_from_db()
    assert key.revoked_at is not None


def test_an_operator_cannot_become_a_superuser_nor_touch_one(operator: Client) -> None:
    root = User.objects.create_superuser("root")
    oscar = User.objects.get(username="oscar")
    operator.post(
        reverse("admin:accounts_user_change", args=[oscar.pk]),
        {"username": "oscar", "is_superuser": "on", "is_active": "on", "is_staff": "on"},
    )
    oscar.refresh_from_db()
    assert not oscar.is_superuser
    address = reverse("admin:auth_user_password_change", args=[root.pk])
    assert operator.post(address, {"password1": "abc", "password2": "abc"}).status_code == 403
    picked = {"action": "delete_selected", "_selected_action": [str(root.pk)], "post": "yes"}
    operator.post(reverse("admin:accounts_user_changelist"), picked)
    assert User.objects.filter(pk=root.pk).exists()


def test_deleting_a_user_settles_what_runs_and_keeps_the_ledger(
    operator: Client, django_capture_on_commit_callbacks: Any
) -> None:
    alice = User.objects.create_user("alice")
    row = generation(alice)
    quotas.reserve(user=alice, generation_id=row.pk, tokens=70, gpu_seconds=2, now=timezone.now())
    with django_capture_on_commit_callbacks(execute=True):
        answer = operator.post(reverse("admin:accounts_user_delete", args=[alice.pk]), {"post": "yes"})
    assert answer.status_code == 302
    assert not User.objects.filter(username="alice").exists()
    assert not Generation.objects.exists()
    assert not Reservation.objects.exists()
    assert UsageRecord.objects.get().username == "alice"


def test_stop_asks_the_living_and_leaves_the_ended(operator: Client) -> None:
    populate(2)
    ids = [str(pk) for pk in Generation.objects.values_list("pk", flat=True)]
    operator.post(
        reverse("admin:generations_generation_changelist"), {"action": "stop", "_selected_action": ids}, follow=True
    )
    asked = Generation.objects.exclude(cancel_requested_at=None)
    assert [row.status for row in asked] == [Status.ACCEPTED]


def test_one_default_plan_and_model_are_chosen_by_an_action(operator: Client) -> None:
    populate(1)
    team = Plan.objects.get(name="team")
    picked = {"action": "make_default", "_selected_action": [str(team.pk)]}
    operator.post(reverse("admin:accounts_plan_changelist"), picked)
    assert [plan.name for plan in Plan.objects.filter(is_default=True)] == ["team"]
    model = ServedModel.objects.get(slug="m1")
    picked = {"action": "make_default", "_selected_action": [str(model.pk)]}
    operator.post(reverse("admin:generations_servedmodel_changelist"), picked)
    assert [each.slug for each in ServedModel.objects.filter(is_default=True)] == ["m1"]


def test_a_models_state_is_unknown_while_redis_is_away(operator: Client) -> None:
    populate(1)
    assert "unknown" in operator.get(reverse("admin:generations_servedmodel_changelist")).content.decode()


@pytest.mark.needs("redis")
def test_a_models_state_is_what_its_workers_say(operator: Client, settings: Any, fresh_redis_url: str) -> None:
    settings.REDIS_URL = fresh_redis_url
    redis_client.client.cache_clear()
    populate(1)
    said = ModelStatus(
        model="m1", context_tokens=2048, vocabulary_sha256="", turn_tokens=4, slots=8, seconds_per_token=0.01,
        state="failed", detail="no such directory",
    )  # fmt: skip
    redis_client.client().set(names.model_key("m1"), said.to_json(), px=5000)
    page = operator.get(reverse("admin:generations_servedmodel_changelist")).content.decode()
    assert "failed (no such directory), no worker now" in page
    assert "2,048" in page
    assert "never seen" in page  # m0
