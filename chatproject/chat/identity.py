"""Who is at the other end of a chat socket: session cookie, API key or ticket. Whether they may stay is for `rights`.

A cookie comes by itself from any page, so it counts only with an Origin of ours; a key or a ticket proves itself.
Works on the ASGI scope and the database, in a thread; knows no socket.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.models import Session
from django.http import parse_cookie
from django.http.request import split_domain_port, validate_host
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from chatproject.accounts import keys
from chatproject.accounts.models import ApiKey, User
from chatproject.chat import tickets

NOT_SIGNED_IN: Final = 4401
MAY_NOT_CHAT: Final = 4403
_SESSION_KEY: Final = re.compile(r"[0-9A-Za-z]{1,40}")
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One user, and what the right to be here hangs on. Empty fields do not matter to this one."""

    user_id: str
    session_key: str = ""
    key_id: uuid.UUID | None = None
    stamp: str = ""  # of the password


class Unwelcome(Exception):
    """The socket is closed with this code; the text says what to do."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}")


@dataclass(frozen=True, slots=True)
class Credential:
    """What only the database can tell to be good: the text of an API key, or the key of a session."""

    kind: Literal["key", "session"]
    secret: str = field(repr=False)


def present(scope: Mapping[str, Any]) -> Identity | Credential:
    """Return what whoever knocks shows; a ticket is read already. Raises Unwelcome. Asks no database."""
    headers = {name.lower(): value.decode("latin1") for name, value in scope["headers"]}
    if b"authorization" in headers:
        scheme, _, plaintext = headers[b"authorization"].partition(" ")
        if scheme.lower() != "bearer":
            raise _bad_key()
        return Credential("key", plaintext.strip())
    given = parse_qs(scope.get("query_string", b"").decode("latin1")).get("ticket")
    if given:
        return _by_ticket(given[0])
    session_key = parse_cookie(headers.get(b"cookie", "")).get(settings.SESSION_COOKIE_NAME)
    # Only what may be one: PostgreSQL refuses a NUL, and with it all who are looked up together.
    if not session_key or not _SESSION_KEY.fullmatch(session_key):
        raise Unwelcome(NOT_SIGNED_IN, "Sign in first.")
    if not is_origin_ours(headers.get(b"origin", ""), headers.get(b"host", "")):
        raise Unwelcome(MAY_NOT_CHAT, "This origin is not served here. Add it to TRUSTED_ORIGINS.")
    return Credential("session", session_key)


def identify_all(credentials: Collection[Credential]) -> dict[Credential, Identity | Unwelcome]:
    """Return who shows each, or why nobody is let in with it. Three queries at most, for any number of them."""
    keys_shown = [credential.secret for credential in credentials if credential.kind == "key"]
    valid = keys.identify_all(keys_shown) if keys_shown else {}
    sessions = _sessions([credential.secret for credential in credentials if credential.kind == "session"])
    return {
        credential: _of_key(valid.get(credential.secret))
        if credential.kind == "key"
        else _of_session(credential.secret, *sessions.get(credential.secret, (None, None)))
        for credential in credentials
    }


def is_origin_ours(origin: str, host: str) -> bool:
    """Say whether a page of ``origin`` may use the visitor's cookie: a configured one, or the one it is served from."""
    if origin in settings.WEBSOCKET_ORIGINS:
        return True
    try:
        parts = urlsplit(origin)
        is_form = parts.scheme in _PORTS and origin == f"{parts.scheme}://{parts.netloc}"
        port = parts.port or _PORTS.get(parts.scheme)
        served = urlsplit(f"//{host}")
        is_same = (parts.hostname, port) == (served.hostname, served.port or _PORTS.get(parts.scheme))
    except ValueError:
        return False
    # The Host header is the visitor's word too: without ALLOWED_HOSTS a foreign name could point here.
    return (
        is_form
        and is_same
        and (parts.scheme == "https") == settings.IS_SECURE
        and validate_host(split_domain_port(host)[0], settings.ALLOWED_HOSTS)
    )


def _bad_key() -> Unwelcome:
    return Unwelcome(NOT_SIGNED_IN, "The API key is not valid. Make one in the settings.")


def _of_key(key: ApiKey | None) -> Identity | Unwelcome:
    if key is None:
        return _bad_key()
    if not keys.allows(key, "chat"):
        return Unwelcome(MAY_NOT_CHAT, "This API key lacks the scope chat.")
    return Identity(user_id=str(key.user_id), key_id=key.pk)


def _by_ticket(text: str) -> Identity:
    ticket = tickets.read(text)
    if ticket is None:
        raise Unwelcome(NOT_SIGNED_IN, "The ticket is not valid any more. Fetch a new one.")
    return Identity(user_id=ticket.user_id, stamp=ticket.stamp)


def _sessions(session_keys: Collection[str]) -> dict[str, tuple[User | None, str | None]]:
    """Return of each session that has not ended its user, and the hash it was begun with."""
    if not session_keys:
        return {}
    open_ = {
        session.session_key: session.get_decoded()
        for session in Session.objects.filter(session_key__in=session_keys, expire_date__gt=timezone.now())
    }
    user_ids = {key: _uuid(session.get(SESSION_KEY)) for key, session in open_.items()}
    users: dict[uuid.UUID | None, User] = {}
    users.update(User.objects.in_bulk([user_id for user_id in set(user_ids.values()) if user_id]))
    return {key: (users.get(user_ids[key]), session.get(HASH_SESSION_KEY)) for key, session in open_.items()}


def _uuid(text: Any) -> uuid.UUID | None:
    try:
        return uuid.UUID(str(text))
    except ValueError:  # one session that is not ours to read must not keep out all the others
        return None


def _of_session(session_key: str, user: User | None, held: str | None) -> Identity | Unwelcome:
    if user is None or not held or not any(constant_time_compare(held, each) for each in _session_hashes(user)):
        return Unwelcome(NOT_SIGNED_IN, "The session has ended. Sign in again.")
    if not user.is_active:
        return Unwelcome(MAY_NOT_CHAT, "This account is not active. Ask an administrator.")
    return Identity(user_id=str(user.pk), session_key=session_key, stamp=tickets.stamp_of(user.password))


def _session_hashes(user: User) -> list[str]:
    return [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
