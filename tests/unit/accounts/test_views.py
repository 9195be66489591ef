"""One's own account: in, out, a new one, keys shown once, the password, and what was used."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from chatproject.accounts import keys, views
from chatproject.accounts.models import ApiKey, DailyUse, Plan, User

pytestmark = pytest.mark.django_db
PASSWORD = "a long pass phrase"
SIGN_UP = {"username": "carol", "password1": PASSWORD, "password2": PASSWORD}


@pytest.fixture(autouse=True)
def _fast_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice", password=PASSWORD)


@pytest.fixture
def browser(alice: User) -> Client:
    client = Client()
    client.force_login(alice)
    return client


def test_sign_in_goes_where_one_wanted_to_go(client: Client, alice: User) -> None:
    answer = client.post("/accounts/login/", {"username": "alice", "password": PASSWORD, "next": "/usage"})
    assert answer.headers["Location"] == "/usage"


def test_sign_in_never_leads_to_another_site(client: Client, alice: User) -> None:
    answer = client.post(
        "/accounts/login/", {"username": "alice", "password": PASSWORD, "next": "https://evil.example"}
    )
    assert answer.headers["Location"] == "/"


def test_a_wrong_password_does_not_say_which_part_was_wrong(client: Client, alice: User) -> None:
    wrong = client.post("/accounts/login/", {"username": "alice", "password": "x"}).content
    unknown = client.post("/accounts/login/", {"username": "nobody", "password": "x"}).content
    assert b"do not belong together" in wrong
    assert b"do not belong together" in unknown


def test_guessing_a_password_is_slowed_down(client: Client) -> None:
    name = f"alice-{uuid.uuid4().hex[:8]}"
    User.objects.create_user(name, password=PASSWORD)
    good, wrong = {"username": name, "password": PASSWORD}, {"username": name, "password": "x"}
    for _ in range(views.SIGN_IN_TRIES - 1):
        assert client.post("/accounts/login/", wrong).status_code == 200
    assert client.post("/accounts/login/", good).status_code == 302
    client.logout()
    for _ in range(views.SIGN_IN_TRIES):
        assert client.post("/accounts/login/", wrong).status_code == 200
    refused = client.post("/accounts/login/", good)
    assert refused.status_code == 429
    assert b"Too many tries. Try again in" in refused.content


def test_sign_up_gives_the_default_plan_and_signs_in(client: Client) -> None:
    Plan.objects.filter(is_default=True).update(is_default=False)
    plan = Plan.objects.create(name="newcomers", is_default=True)
    assert client.post("/accounts/signup/", SIGN_UP).headers["Location"] == "/"
    assert User.objects.get(username="carol").plan == plan
    assert client.get("/settings").status_code == 200


def test_sign_up_can_be_closed(client: Client, settings: Any) -> None:
    settings.SIGNUP = "closed"
    assert client.get("/accounts/signup/").status_code == 403
    assert client.post("/accounts/signup/", SIGN_UP).status_code == 403
    assert not User.objects.filter(username="carol").exists()
    assert b"/accounts/signup/" not in client.get("/accounts/login/").content


@pytest.mark.parametrize(
    "changed", [{"password2": "another one"}, {"username": "alice"}, {"password1": "1", "password2": "1"}]
)
def test_a_bad_sign_up_makes_nothing(client: Client, alice: User, changed: dict[str, str]) -> None:
    assert client.post("/accounts/signup/", SIGN_UP | changed).status_code == 400
    assert User.objects.count() == 1


def test_signing_out_needs_a_post(browser: Client) -> None:
    assert browser.get("/accounts/logout/").status_code == 405
    assert browser.post("/accounts/logout/").headers["Location"] == "/accounts/login/"
    assert browser.get("/settings").status_code == 302


def test_a_key_is_shown_once_and_works(browser: Client, alice: User) -> None:
    answer = browser.post("/settings/keys", {"name": "laptop"})
    plaintext = answer.context["new_key"]
    assert plaintext in answer.content.decode()
    assert "no-store" in answer.headers["Cache-Control"]
    assert keys.authenticate(plaintext) == alice
    later = browser.get("/settings").content.decode()
    assert plaintext not in later
    assert ApiKey.objects.get().prefix in later


def test_a_revoked_key_is_gone(browser: Client, alice: User) -> None:
    key, plaintext = keys.create(user=alice, name="laptop")
    assert browser.post(f"/settings/keys/{key.pk}/revoke").headers["Location"] == "/settings"
    assert keys.authenticate(plaintext) is None
    assert key.prefix not in browser.get("/settings").content.decode()


def test_a_foreign_key_cannot_be_revoked(browser: Client) -> None:
    key, plaintext = keys.create(user=User.objects.create_user("bob"), name="bobs")
    assert browser.post(f"/settings/keys/{key.pk}/revoke").status_code == 404
    assert keys.authenticate(plaintext) is not None


def test_a_changed_password_keeps_this_browser_and_ends_the_others(browser: Client, alice: User) -> None:
    other = Client()
    other.force_login(alice)
    new = "quite another phrase"
    fields = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    assert browser.post("/settings/password", fields).status_code == 302
    assert browser.get("/settings").status_code == 200
    assert other.get("/settings").status_code == 302


def test_the_old_password_is_asked_for(browser: Client, alice: User) -> None:
    fields = {"old_password": "wrong", "new_password1": "quite another phrase", "new_password2": "quite another phrase"}
    assert browser.post("/settings/password", fields).status_code == 400
    alice.refresh_from_db()
    assert alice.check_password(PASSWORD)


def test_settings_show_use_against_the_limits(browser: Client, alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(tokens_per_day=50_000, gpu_seconds_per_day=100)
    DailyUse.objects.create(
        user=alice, day=timezone.now().date(), tokens_used=12_500, gpu_seconds_used=7.25, generations=4
    )
    html = browser.get("/settings").content.decode()
    assert "12,500 of 50,000" in html
    assert 'max="50000.000000" value="12500.000000"' in html


def test_usage_has_every_day_of_two_weeks(browser: Client, alice: User) -> None:
    today = timezone.now().date()
    DailyUse.objects.create(user=alice, day=today - timedelta(days=3), tokens_used=4_321, generations=2)
    DailyUse.objects.create(user=alice, day=today - timedelta(days=20), tokens_used=99_999)
    html = browser.get("/usage").content.decode()
    assert html.count('<th scope="row">') == 14
    assert "4,321" in html
    assert "99,999" not in html
