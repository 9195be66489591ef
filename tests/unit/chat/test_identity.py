"""Those who knock at one moment are looked up together; each hears what is true of it alone."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from chatproject.accounts import keys
from chatproject.accounts.models import ApiKey, User
from chatproject.chat import identity
from chatproject.chat.identity import MAY_NOT_CHAT, NOT_SIGNED_IN, Credential, Identity, Unwelcome
from chatproject.chat.presence import Presence

pytestmark = pytest.mark.django_db(transaction=True)


def user(name: str, **fields: Any) -> User:
    return User.objects.create_user(username=name, password="a long password", **fields)


def signed_in(of: User, **fields: Any) -> Credential:
    session = SessionStore()
    session.update({SESSION_KEY: str(of.pk), HASH_SESSION_KEY: of.get_session_auth_hash(), **fields})
    session.save()
    return Credential("session", str(session.session_key))


def key_of(of: User, *scopes: str) -> Credential:
    return Credential("key", keys.create(user=of, name="k", scopes=scopes)[1])


def told(found: Identity | Unwelcome) -> str | int:
    return found.user_id if isinstance(found, Identity) else found.code


def test_each_of_many_hears_what_is_true_of_it() -> None:
    alice, bob, gone = user("alice"), user("bob"), user("gone", is_active=False)
    revoked, ended, changed = key_of(alice), signed_in(alice), signed_in(bob)
    keys.revoke(user=alice, key_id=ApiKey.objects.get(user=alice).pk)
    Session.objects.filter(session_key=ended.secret).update(expire_date=timezone.now() - timedelta(seconds=1))
    expected = {
        key_of(alice): str(alice.pk), key_of(bob, "chat"): str(bob.pk), key_of(bob, "models"): MAY_NOT_CHAT,
        key_of(gone): NOT_SIGNED_IN, revoked: NOT_SIGNED_IN, Credential("key", "sk-chat-nonsense"): NOT_SIGNED_IN,
        Credential("key", ""): NOT_SIGNED_IN, signed_in(alice): str(alice.pk), signed_in(gone): MAY_NOT_CHAT,
        ended: NOT_SIGNED_IN, changed: NOT_SIGNED_IN, Credential("session", "nonsense"): NOT_SIGNED_IN,
        signed_in(alice, **{SESSION_KEY: "no uuid"}): NOT_SIGNED_IN,
        signed_in(alice, **{HASH_SESSION_KEY: None}): NOT_SIGNED_IN,
    }  # fmt: skip
    bob.set_password("another long password")
    bob.save()
    assert {shown: told(found) for shown, found in identity.identify_all(expected).items()} == expected


def test_many_cost_three_queries_and_a_note_of_the_use() -> None:
    users = [user(f"u{number}") for number in range(20)]
    shown = [*map(key_of, users), *map(signed_in, users)]
    with CaptureQueriesContext(
        connection,
    ) as first:
        identity.identify_all(shown)
    with CaptureQueriesContext(connection) as again:
        found = identity.identify_all(shown)
    assert [told(found[each]) for each in shown] == [str(each.pk) for each in users] * 2
    selects = [query["sql"] for query in first.captured_queries if query["sql"].startswith("SELECT")]
    assert len(selects) == len(again.captured_queries) == 3
    assert ApiKey.objects.filter(last_used_at=None).count() == 0


async def test_those_who_come_together_share_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def identify_all(shown: Any) -> dict[Credential, Identity | Unwelcome]:
        asked.append(len(shown))
        return {each: Identity(user_id=each.secret) for each in shown if each.secret != "bad"}

    monkeypatch.setattr(identity, "identify_all", identify_all)
    presence = Presence(lost=lambda known: {})

    async def knock(secret: str) -> str | int:
        try:
            return (await presence.identify({"headers": [(b"Authorization", f"Bearer {secret}".encode())]})).user_id
        except Unwelcome as unwelcome:
            return unwelcome.code

    names = [f"k{number}" for number in range(30)]
    assert await asyncio.gather(*map(knock, [*names, "bad"])) == [*names, NOT_SIGNED_IN]
    assert asked == [31]


def test_a_header_without_a_key_lets_nobody_in() -> None:
    for authorization in (b"", b"Basic abc"):
        with pytest.raises(Unwelcome) as raised:
            identity.present({"headers": [(b"authorization", authorization)]})
        assert raised.value.code == NOT_SIGNED_IN
    assert identity.present({"headers": [(b"authorization", b"Bearer")]}) == Credential("key", "")


@pytest.mark.parametrize("cookie", ['"abcdefgh\\000"', "", "ä", "x" * 41])
def test_a_cookie_that_can_be_no_session_troubles_nobody_else(cookie: str) -> None:
    scope = {"headers": [(b"cookie", f"sessionid={cookie}".encode()), (b"host", b"testserver")]}
    with pytest.raises(Unwelcome) as raised:
        identity.present(scope)
    assert raised.value.code == NOT_SIGNED_IN


def test_what_is_shown_is_not_printed() -> None:
    assert "sk-secret" not in repr(Credential("key", "sk-secret"))
