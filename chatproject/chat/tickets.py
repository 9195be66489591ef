"""Tickets for the chat socket: signed, good for a minute, and read without a database. Knows no socket.

For clients that cannot send a cookie or a header. A ticket carries a stamp of the password, so that a changed password
ends its sockets as it ends sessions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

from django.core import signing
from django.utils.crypto import salted_hmac

from chatproject.accounts.models import User

MAX_AGE_S: Final = 60
_SALT: Final = "chat.ticket"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Whose it is, and which password it was made under."""

    user_id: str
    stamp: str


def make(user: User) -> str:
    """Return a ticket for ``/ws/chat/?ticket=``."""
    return signing.dumps([str(user.pk), stamp_of(user.password)], salt=_SALT)


def read(text: str) -> Ticket | None:
    """Return what a ticket says; None when it is not ours, or older than a minute."""
    try:
        user_id, stamp = signing.loads(text, salt=_SALT, max_age=MAX_AGE_S)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    return Ticket(user_id=user_id, stamp=stamp)


@functools.lru_cache(maxsize=20_000)
def stamp_of(password_hash: str) -> str:
    """Return a digest that changes with the stored password hash and tells nothing of it."""
    return salted_hmac("chat.socket", password_hash, algorithm="sha256").hexdigest()[:32]
