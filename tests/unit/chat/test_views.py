"""The page and its small endpoints: one's own conversations only, signed in only, changed with the CSRF token only."""

from __future__ import annotations

import json
import re
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from chatproject.accounts.models import User
from chatproject.chat import views
from chatproject.chat.models import Conversation, Message
from chatproject.generations.models import Generation, ServedModel, Status

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice() -> User:
    ServedModel.objects.get_or_create(slug="demo", defaults={"name": "Demo", "is_default": True})
    return User.objects.create_user("alice")


@pytest.fixture
def browser(alice: User) -> Client:
    client = Client()
    client.force_login(alice)
    return client


def conversation(user: User, title: str = "Rivers", answer: str = "They **flow**.", **fields: Any) -> Conversation:
    made = Conversation.objects.create(user=user, title=title, **fields)
    generation = Generation.objects.create(
        user=user, client_id=str(uuid.uuid4()), thread=made.id, model="demo", lane="interactive", request={},
        status=Status.DONE, expires_at=timezone.now(), answer=answer, completion_tokens=3,
    )  # fmt: skip
    Message.objects.create(conversation=made, position=0, role="user", text="What do rivers do?")
    Message.objects.create(conversation=made, position=1, role="assistant", generation_id=generation.id)
    return made


def data_of(html: str) -> Any:
    """What the page hands to its scripts."""
    found = re.search(r'<script id="chat-data" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_visitor_is_sent_to_the_door_and_back(client: Client) -> None:
    address = f"/c/{uuid.uuid4()}"
    assert client.get(address).headers["Location"] == f"/accounts/login/?next={address}"


@pytest.mark.parametrize("path", ["/c/", "/c/{id}/transcript", "/c/{id}/rename", "/c/{id}/delete"])
def test_a_script_that_is_signed_out_is_told_so(client: Client, path: str) -> None:
    path = path.format(id=uuid.uuid4())
    answer = client.post(path) if path.endswith(("rename", "delete")) else client.get(path)
    assert answer.status_code == 401
    assert answer.json()["code"] == "signed_out"


def test_the_page_brings_the_list_and_the_open_conversation(browser: Client, alice: User) -> None:
    made = conversation(alice)
    data = data_of(browser.get(f"/c/{made.id}").content.decode())
    assert [entry["title"] for entry in data["list"]["conversations"]] == ["Rivers"]
    question, answer = data["opened"]["messages"]
    assert question["text"] == "What do rivers do?"
    assert answer["html"] == "<p>They <strong>flow</strong>.</p>\n"
    assert answer["usage"]["completion_tokens"] == 3


def test_text_cannot_leave_the_data_of_the_page(browser: Client, alice: User) -> None:
    made = conversation(alice, title="</script><script>alert(1)</script>", answer="</script><script>alert(2)</script>")
    html = browser.get(f"/c/{made.id}").content.decode()
    assert "<script>alert" not in html
    assert data_of(html)["opened"]["messages"][1]["text"] == "</script><script>alert(2)</script>"


def test_what_is_foreign_does_not_exist(browser: Client) -> None:
    bob = User.objects.create_user("bob")
    made = conversation(bob)
    generation = Generation.objects.get(thread=made.id)
    assert browser.get(f"/c/{made.id}").status_code == 404
    assert browser.get(f"/c/{made.id}/transcript").json()["code"] == "not_found"
    assert browser.get(f"/c/{made.id}/answers/{generation.id}").status_code == 404
    assert browser.post(f"/c/{made.id}/rename", {"title": "mine"}).status_code == 404
    assert browser.post(f"/c/{made.id}/delete").status_code == 404
    assert Conversation.objects.get().title == "Rivers"


def test_an_answer_of_another_conversation_is_not_found(browser: Client, alice: User) -> None:
    one, other = conversation(alice), conversation(alice)
    generation = Generation.objects.get(thread=other.id)
    assert browser.get(f"/c/{one.id}/answers/{generation.id}").status_code == 404
    assert browser.get(f"/c/{other.id}/answers/{generation.id}").json()["text"] == "They **flow**."


def test_older_chats_come_page_by_page_without_gap_or_repeat(browser: Client, alice: User) -> None:
    now = timezone.now()
    count = 2 * views.LIST_PAGE + 3
    Conversation.objects.bulk_create(
        Conversation(user=alice, title=f"chat {n}", updated_at=now - timedelta(minutes=n)) for n in range(count)
    )
    titles: list[str] = []
    query: dict[str, str] = {}
    for _ in range(3):
        page = browser.get("/c/", query).json()
        titles += [entry["title"] for entry in page["conversations"]]
        query = {"before": page["next"]}
    assert titles == [f"chat {n}" for n in range(count)]
    assert page["next"] is None


@pytest.mark.parametrize(
    "cursor", ["yesterday", "2026-13-45T00:00Z", "2026-01-01T00:00", "0001-01-01T00:00+14:00", "\0"]
)
def test_a_bad_cursor_is_refused(browser: Client, cursor: str) -> None:
    assert browser.get("/c/", {"before": cursor}).json()["code"] == "bad_params"


def test_search_takes_any_text(browser: Client, alice: User) -> None:
    conversation(alice, title="100% rivers_and 'lakes'")
    for query, count in (("RIVERS_and", 1), ("100%", 1), ("100% sea", 0), ("\0", 1), ("x" * 5000, 0)):
        assert len(browser.get("/c/", {"q": query}).json()["conversations"]) == count


def test_rename_says_what_was_stored(browser: Client, alice: User) -> None:
    made = conversation(alice)
    assert browser.post(f"/c/{made.id}/rename", {"title": "  Big   rivers "}).json()["title"] == "Big rivers"
    assert browser.post(f"/c/{made.id}/rename", {"title": ""}).json()["code"] == "bad_params"
    assert Conversation.objects.get().title == "Big rivers"


def test_changing_needs_the_csrf_token(alice: User) -> None:
    made = conversation(alice)
    stranger = Client(enforce_csrf_checks=True)
    stranger.force_login(alice)
    assert stranger.post(f"/c/{made.id}/delete").status_code == 403
    assert stranger.get(f"/c/{made.id}/delete").status_code == 405
    assert Conversation.objects.count() == 1


def test_only_models_of_the_users_plan_are_offered(browser: Client) -> None:
    ServedModel.objects.create(slug="off", name="Off", is_enabled=False)
    assert [model["slug"] for model in data_of(browser.get("/").content.decode())["models"]] == ["demo"]


def test_the_page_says_that_the_demo_model_answers(browser: Client, settings: Any) -> None:
    settings.CHAT_MODEL = ""
    assert b"small demo model" in browser.get("/").content
    settings.CHAT_MODEL = "org/real-model"
    assert b"demo model" not in browser.get("/").content


def test_no_page_has_inline_scripts_or_styles(browser: Client, alice: User) -> None:
    made = conversation(alice)
    for path in ("/", f"/c/{made.id}", "/settings", "/usage", "/nothing-here"):
        html = browser.get(path).content.decode()
        scripts = re.findall(r"<script(?![^>]*\bsrc=)([^>]*)>", html)
        assert all('type="application/json"' in attributes for attributes in scripts)
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=", html)
