"""API keys: made, shown once, recognised, revoked. Only a digest is stored.

A key has 256 random bits, so a plain SHA-256 is enough: there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Final

from django.core.exceptions import ValidationError
from django.db.models import Q
from django.utils import timezone

from chatproject.accounts.errors import Refused
from chatproject.accounts.models import ApiKey, User
from chatproject.contract.errors import Refusal

KEY_START: Final = "sk-chat-"
SHOWN_CHARACTERS: Final = 14  # of a key, to tell keys apart; the other 37 stay secret
MAX_KEY_CHARACTERS: Final = 200
MAX_NAME: Final = 80
MAX_KEYS_PER_USER: Final = 50
SCOPES: Final[dict[str, str]] = {
    "chat": "send messages and read the answers",
    "models": "list the models",
}
_USED_AT_MOST_EVERY: Final = timedelta(minutes=1)


def create(*, user: User, name: str, scopes: Iterable[str] = ()) -> tuple[ApiKey, str]:
    """Make a key; the text is returned here and never again. Raises Refused(bad_params)."""
    wanted = sorted(set(scopes))
    check(user=user, name=name, scopes=wanted)
    plaintext = KEY_START + secrets.token_urlsafe(32)
    key = ApiKey.objects.create(
        user=user, name=name.strip(), prefix=plaintext[:SHOWN_CHARACTERS], digest=_digest(plaintext), scopes=wanted
    )
    return key, plaintext


def check(*, user: User, name: str, scopes: Iterable[str]) -> None:
    """Say whether such a key may be made. Raises Refused(bad_params) that says what to change."""
    if not 1 <= len(name.strip()) <= MAX_NAME or not name.strip().isprintable():
        raise Refused(Refusal.BAD_PARAMS, f"Give the key a name of 1 to {MAX_NAME} printable characters.")
    for scope in scopes:
        if scope not in SCOPES:
            raise Refused(Refusal.BAD_PARAMS, f"There is no scope {scope[:40]!r}. Known: {', '.join(SCOPES)}.")
    if ApiKey.objects.filter(user=user, revoked_at=None).count() >= MAX_KEYS_PER_USER:
        raise Refused(Refusal.BAD_PARAMS, f"You have {MAX_KEYS_PER_USER} keys. Revoke one you no longer use.")


def identify(plaintext: str) -> ApiKey | None:
    """Return the valid key of an active user, its user and plan loaded; None for anything else.

    Notes the use at most once a minute, so that a busy key does not make a busy row.
    """
    return identify_all([plaintext]).get(plaintext)


def identify_all(plaintexts: Collection[str]) -> dict[str, ApiKey]:
    """Return those that `identify` would return a key for, with it, after one query for all of them."""
    # One digest and one look-up by it, whatever came: neither length nor prefix tells how near a guess was.
    digests = {plaintext: _digest(plaintext[:MAX_KEY_CHARACTERS]) for plaintext in plaintexts}
    keys = {
        key.digest: key
        for key in ApiKey.objects.select_related("user__plan").filter(
            digest__in=set(digests.values()), revoked_at=None, user__is_active=True
        )
    }
    now = timezone.now()
    used_before = now - _USED_AT_MOST_EVERY
    due = [key.pk for key in keys.values() if key.last_used_at is None or key.last_used_at < used_before]
    if due:
        is_due = Q(last_used_at=None) | Q(last_used_at__lt=used_before)
        ApiKey.objects.filter(is_due, pk__in=due).update(last_used_at=now)
    return {plaintext: keys[digest] for plaintext, digest in digests.items() if digest in keys}


def authenticate(plaintext: str, *, scope: str | None = None) -> User | None:
    """Return the user a key acts as; None when the key is not valid, or lacks ``scope``."""
    key = identify(plaintext)
    if key is None or (scope is not None and not allows(key, scope)):
        return None
    return key.user


def allows(key: ApiKey, scope: str) -> bool:
    """Say whether the key may do this; a key without scopes may do all that its user may."""
    return not key.scopes or scope in key.scopes


def revoke(*, user: User, key_id: uuid.UUID | str) -> None:
    """End a key for good; nothing happens when it was revoked. Raises Refused(not_found) for foreign ids."""
    try:
        mine = ApiKey.objects.filter(user=user, pk=key_id)
        if not mine.exists():
            raise Refused(Refusal.NOT_FOUND, "There is no such key here.")
    except (ValidationError, ValueError) as error:
        raise Refused(Refusal.NOT_FOUND, "There is no such key here.") from error
    mine.filter(revoked_at=None).update(revoked_at=timezone.now())


def _digest(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode("utf-8", "surrogatepass")).hexdigest()
