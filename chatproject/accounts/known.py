"""Users as this process last read them, so that a message needs no look at who sends it.

What is old here lets nobody do anything: `quotas.reserve` has the database hold it against the row. It may only refuse
wrongly, so whoever is refused is read again and judged anew.
"""

from __future__ import annotations

import threading
from typing import Final

from chatproject import statements
from chatproject.accounts.models import User

MOST: Final = 2000  # users, about 3 KB each

_lock = threading.Lock()
_users: dict[str, User] = {}


def last_seen(user_id: str) -> User | None:
    """Return the user as of some time ago, not to be changed; None when this process has not read the row lately."""
    return _users.get(user_id)


def read(user_id: str) -> User | None:
    """Return the user as of now, and remember them; None when there is none."""
    user = statements.get(User, id=user_id)
    with _lock:
        _users.pop(user_id, None)
        if user is not None:
            _users[user_id] = user
            if len(_users) > MOST:
                del _users[next(iter(_users))]
    return user


def forget_all() -> None:
    """Forget everybody, as after a start."""
    with _lock:
        _users.clear()
