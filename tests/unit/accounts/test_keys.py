"""A key is shown once, acts as its user, and ends when revoked."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from chatproject.accounts import keys
from chatproject.accounts.errors import Refused
from chatproject.accounts.models import ApiKey, User


@pytest.fixture
def alice(db: None) -> User:
    return User.objects.create_user("alice")


def test_a_key_acts_as_its_user_and_is_not_stored(alice: User) -> None:
    key, plaintext = keys.create(user=alice, name="laptop")
    assert keys.authenticate(plaintext) == alice
    stored = ApiKey.objects.filter(pk=key.pk).values().get()
    assert plaintext not in str(stored)
    assert plaintext.startswith(stored["prefix"])


@pytest.mark.parametrize("wrong", ["", "sk-chat-", "sk-chat-" + "A" * 43, "x" * 100_000, "\ud800", "käse\x00"])
def test_what_is_no_key_is_nobody(alice: User, wrong: str) -> None:
    keys.create(user=alice, name="laptop")
    assert keys.authenticate(wrong) is None


def test_a_revoked_key_and_a_disabled_users_key_are_nobody(alice: User) -> None:
    key, plaintext = keys.create(user=alice, name="a")
    _, other = keys.create(user=alice, name="b")
    keys.revoke(user=alice, key_id=key.pk)
    assert keys.authenticate(plaintext) is None
    assert keys.authenticate(other) == alice
    User.objects.update(is_active=False)
    assert keys.authenticate(other) is None


def test_nobody_revokes_anothers_key(alice: User) -> None:
    key, plaintext = keys.create(user=alice, name="a")
    bob = User.objects.create_user("bob")
    for key_id in (key.pk, uuid.uuid4(), "not an id"):
        with pytest.raises(Refused, match="no such key"):
            keys.revoke(user=bob, key_id=key_id)
    assert keys.authenticate(plaintext) == alice


def test_use_is_noted_at_most_once_a_minute(alice: User, django_assert_num_queries: Any) -> None:
    key, plaintext = keys.create(user=alice, name="a")
    with django_assert_num_queries(2):
        keys.authenticate(plaintext)
    with django_assert_num_queries(1):
        keys.authenticate(plaintext)
    ApiKey.objects.update(last_used_at=timezone.now() - timedelta(minutes=2))
    keys.authenticate(plaintext)
    key.refresh_from_db()
    assert key.last_used_at is not None
    assert timezone.now() - key.last_used_at < timedelta(minutes=1)


def test_a_scoped_key_does_only_that(alice: User) -> None:
    _, plaintext = keys.create(user=alice, name="a", scopes=["models"])
    assert keys.authenticate(plaintext, scope="models") == alice
    assert keys.authenticate(plaintext, scope="chat") is None


@pytest.mark.parametrize(("name", "scopes"), [("", []), ("x" * 81, []), ("a\x00b", []), ("a", ["everything"])])
def test_a_bad_name_or_scope_is_refused_by_name(alice: User, name: str, scopes: list[str]) -> None:
    with pytest.raises(Refused):
        keys.create(user=alice, name=name, scopes=scopes)
    assert not ApiKey.objects.exists()
