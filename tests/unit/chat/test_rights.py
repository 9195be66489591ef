"""Every right that ends is seen, at whatever look, and nobody else's: in both databases, with one statement."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.utils import timezone

from chatproject.accounts import keys
from chatproject.accounts.models import ApiKey, Plan, User
from chatproject.chat import tickets
from chatproject.chat.identity import Identity
from chatproject.chat.rights import Rights

pytestmark = pytest.mark.django_db
NAMES = ("alice", "bob")


@pytest.fixture
def cast() -> dict[str, list[Identity]]:
    """Of each user what a session, a key and a ticket show."""
    plan = Plan.objects.create(name="plan")
    found = {}
    for name in NAMES:
        user = User.objects.create_user(name, password=f"pass phrase of {name}", plan=plan)
        Session.objects.create(session_key=name, session_data="", expire_date=timezone.now() + timedelta(days=1))
        key, _ = keys.create(user=user, name="test")
        id_, stamp = str(user.pk), tickets.stamp_of(user.password)
        found[name] = [
            Identity(user_id=id_, session_key=name, stamp=stamp), Identity(user_id=id_, key_id=key.pk),
            Identity(user_id=id_, stamp=stamp),
        ]  # fmt: skip
    return found


def switched_off() -> None:
    User.objects.filter(username="bob").update(is_active=False)


def deleted() -> None:
    Session.objects.filter(session_key="bob").delete()
    User.objects.filter(username="bob").delete()


def signed_out() -> None:
    Session.objects.filter(session_key="bob").delete()


def session_expired() -> None:
    Session.objects.filter(session_key="bob").update(expire_date=timezone.now())


def key_revoked() -> None:
    ApiKey.objects.filter(user__username="bob").update(revoked_at=timezone.now())


def password_changed() -> None:
    bob = User.objects.get(username="bob")
    bob.set_password("another one")
    bob.save()


@pytest.mark.parametrize("num_looks", [0, 1, 3])
@pytest.mark.parametrize(
    ("end", "codes"),
    [
        (switched_off, [4403, 4403, 4403]), (deleted, [4401, 4401, 4401]), (signed_out, [4401, None, None]),
        (session_expired, [4401, None, None]), (key_revoked, [None, 4401, None]),
        (password_changed, [4401, None, 4401]),
    ],
)  # fmt: skip
def test_a_right_that_ends_is_seen_and_nobody_elses(
    cast: dict[str, list[Identity]], end: Callable[[], None], codes: list[int | None], num_looks: int
) -> None:
    rights = Rights()
    everybody = [*cast["alice"], *cast["bob"]]
    for _ in range(num_looks):
        assert rights.lost(everybody) == {}
    end()
    gone = {identity: code for identity, code in zip(cast["bob"], codes, strict=True) if code}
    # As often as it is asked: a socket may take a while to close.
    for _ in range(2):
        assert rights.lost(everybody) == gone
    assert rights.lost([each for each in everybody if each not in gone]) == {}


def test_who_comes_with_an_old_stamp_among_those_who_are_known_is_seen(cast: dict[str, list[Identity]]) -> None:
    """A ticket from before the password changed; the user is known with the new one."""
    old = cast["bob"][2]
    password_changed()
    new = Identity(user_id=old.user_id, stamp=tickets.stamp_of(User.objects.get(username="bob").password))
    rights = Rights()
    assert rights.lost([new]) == {}
    for asked in itertools.permutations((new, old, cast["bob"][1])):
        assert rights.lost(asked) == {old: 4401}
    assert rights.lost([new]) == {}


def test_a_look_is_one_statement(
    cast: dict[str, list[Identity]], django_assert_num_queries: Callable[..., object]
) -> None:
    rights = Rights()
    for _ in range(2):
        with django_assert_num_queries(1):  # type: ignore[attr-defined]
            rights.lost([*cast["alice"], *cast["bob"]])
