"""Which of those who were let in may not stay: switched off, signed out, key revoked, password changed.

Asked twice a second for everybody, so it is one statement that returns only what changed; Django's way took 220 ms of
processor time for ten thousand users. Knows no socket.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from typing import Any, Final

from django.contrib.sessions.models import Session
from django.db import connection
from django.utils import timezone

from chatproject import statements
from chatproject.accounts.models import ApiKey, User
from chatproject.chat import tickets
from chatproject.chat.identity import MAY_NOT_CHAT, NOT_SIGNED_IN, Identity

_NOT_KNOWN: Final = "?"  # no stored password
# Everything known goes in as JSON objects: as many parameters as users is more than SQLite takes.
_CHANGED: Final = """
SELECT 'user', known.key, found.is_active, found.password FROM {each}(%s) AS known
LEFT JOIN {user} AS found ON found.id = {id} WHERE found.id IS NULL OR NOT found.is_active
OR found.password <> known.value
UNION ALL SELECT 'session', known.key, NULL, NULL FROM {each}(%s) AS known
LEFT JOIN {session} AS found ON found.session_key = known.key AND found.expire_date > %s
WHERE found.session_key IS NULL
UNION ALL SELECT 'key', known.key, NULL, NULL FROM {each}(%s) AS known
LEFT JOIN {key} AS found ON found.id = {id} AND found.revoked_at IS NULL WHERE found.id IS NULL
"""


class Rights:
    """Remembers by which password each user was last found to be in the right. Used by one thread at a time."""

    def __init__(self) -> None:
        self._passwords: dict[str, str] = {}  # as stored, by the user's id as the database has it
        self._asked: list[Identity] = []
        self._known: tuple[str, str, str] = ("{}", "{}", "{}")  # users, sessions, keys, of those asked for

    def lost(self, identities: Collection[Identity]) -> dict[Identity, int]:
        """Return those who are no longer welcome, with the close code. Raises django.db.Error."""
        asked = list(identities)
        if asked != self._asked:
            self._prepare(asked)
        changed = self._changed()
        if not changed:
            return {}
        self._asked = []  # what is known is prepared anew
        users = {key: (is_active, password) for kind, key, is_active, password in changed if kind == "user"}
        ended = {(kind, key) for kind, key, *_ in changed if kind != "user"}
        gone: dict[Identity, int] = {}
        for identity in asked:
            user = _id(identity.user_id)
            is_active, password = users.get(user, (True, self._passwords.get(user, _NOT_KNOWN)))
            if is_active is not None and not is_active:
                gone[identity] = MAY_NOT_CHAT
            elif (
                is_active is None
                or ("session", identity.session_key) in ended
                or (identity.key_id and ("key", _id(identity.key_id)) in ended)
                or (identity.stamp and identity.stamp != tickets.stamp_of(password))
            ):
                gone[identity] = NOT_SIGNED_IN
        for user, (_, password) in users.items():
            self._passwords[user] = _NOT_KNOWN if password is None else password
        return gone

    def _prepare(self, asked: list[Identity]) -> None:
        """Note what is known of those asked for; of a user whose stamp is another one's, that all is to be told."""
        known: dict[str, str] = {}
        for identity in asked:
            user = _id(identity.user_id)
            password = known.get(user, self._passwords.get(user, _NOT_KNOWN))
            is_right = not identity.stamp or identity.stamp == tickets.stamp_of(password)
            known[user] = password if is_right else _NOT_KNOWN
        self._passwords = {user: self._passwords.get(user, _NOT_KNOWN) for user in known}
        sessions = {identity.session_key: "" for identity in asked if identity.session_key}
        keys = {_id(identity.key_id): "" for identity in asked if identity.key_id}
        self._known = (json.dumps(known), json.dumps(sessions), json.dumps(keys))
        self._asked = asked

    def _changed(self) -> list[tuple[Any, ...]]:
        is_sqlite = connection.vendor == "sqlite"
        sql = _CHANGED.format(
            each="json_each" if is_sqlite else "json_each_text",
            id="known.key" if is_sqlite else "CAST(known.key AS uuid)",
            user=User._meta.db_table, session=Session._meta.db_table, key=ApiKey._meta.db_table,
        )  # fmt: skip
        users, sessions, keys = self._known
        now = statements.values(Session, expire_date=timezone.now())
        return statements.execute_all(sql, [users, sessions, *now, keys])


def _id(value: uuid.UUID | str) -> str:
    """Return an id as SQLite has it, which PostgreSQL reads, too."""
    return value.hex if isinstance(value, uuid.UUID) else value.replace("-", "")
