"""The command line makes accounts, plans and keys, and says what is wrong with a request."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from chatproject.accounts import keys
from chatproject.accounts.models import ApiKey, Plan, User

pytestmark = pytest.mark.django_db


def run(*args: str) -> str:
    out = io.StringIO()
    call_command(*args, stdout=out)
    return out.getvalue()


def test_a_created_user_signs_in_and_has_the_plan(client: Any) -> None:
    run("user", "create", "alice", "--password", "a long secret", "--plan", "vip")
    assert client.login(username="alice", password="a long secret")
    alice = User.objects.get()
    assert (alice.plan.name if alice.plan else "", alice.is_staff) == ("vip", False)


def test_staff_may_use_the_admin_but_not_read_text() -> None:
    run("user", "create", "bob", "--password", "x", "--staff")
    bob = User.objects.get()
    assert bob.is_staff
    assert bob.has_perm("accounts.change_plan")
    assert not bob.has_perm("chat.view_text")


def test_the_password_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    run("user", "create", "alice", "--password", "-")
    assert User.objects.get().check_password("from a pipe")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("user", "create", "alice", "--password", "x"), "taken"),
        (("user", "create", "bob", "--password", ""), "empty"),
        (("user", "create", "b o b", "--password", "x"), "cannot be used"),
        (("user", "create", "bob", "--password", "x", "--plan", "gold"), "no plan 'gold'"),
        (("plan", "set", "gold", "--tokens-per-day", "many"), "--tokens-per-day"),
        (("plan", "set", "gold", "--weight", "0"), "--weight"),
        (("plan", "set", "g old"), "--name"),
        (("apikey", "create", "--user", "nobody"), "no user 'nobody'"),
        (("apikey", "create", "--user", "alice", "--scope", "root"), "no scope 'root'"),
    ],
)
def test_what_cannot_be_done_says_why_and_changes_nothing(args: tuple[str, ...], says: str) -> None:
    User.objects.create_user("alice")
    plans = Plan.objects.count()
    with pytest.raises(CommandError, match=says):
        run(*args)
    assert (User.objects.count(), Plan.objects.count(), ApiKey.objects.count()) == (1, plans, 0)


def test_a_plan_is_made_then_changed_where_asked() -> None:
    run("plan", "set", "gold", "--lane", "vip", "--tokens-per-day", "1000", "--gpu-seconds-per-day", "1.5")
    run("plan", "set", "gold", "--concurrent", "3", "--tokens-per-day", "none")
    gold = Plan.objects.get(name="gold")
    assert (gold.lane, gold.tokens_per_day, gold.gpu_seconds_per_day, gold.concurrent) == ("vip", None, 1.5, 3)


def test_the_printed_key_and_nothing_else_works() -> None:
    alice = User.objects.create_user("alice")
    printed = run("apikey", "create", "--user", "alice", "--scope", "chat")
    assert keys.authenticate(printed.removesuffix("\n")) == alice
    assert ApiKey.objects.get().scopes == ["chat"]
