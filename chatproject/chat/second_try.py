"""The second try of a message whose connection was lost in its COMMIT.

Nobody knows whether it was stored. It is sent once more, as any client may: its id makes it the same message, whether
the first was stored, was not, or only will be when the server gets to it. Knows nothing of what it says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from django.db import InterfaceError, OperationalError, connection

from chatproject import statements
from chatproject.accounts import known
from chatproject.accounts.models import User
from chatproject.chat.errors import Refusal, Refused
from chatproject.generations import admission

AGAIN_FOR_S: Final = 5.0  # and a try that has begun: 10 s for a connection, or 20 for a kept one that answers nothing
LOCK_WAIT_S: Final = 2.0
RETRY_S: Final = 2.0
_UNKNOWN: Final = (
    "The database went away while it stored this. Sent again under the same id, the message is stored once."
)

_T = TypeVar("_T")
log = logging.getLogger(__name__)


def once_more(lost: Exception, user: User, accept: Callable[[User], _T]) -> _T:
    """Send again what may have been stored. Raises Refused, ``is_unknown`` where the database does not answer in time.

    To look for it would not do: the server may be about to commit what it was sent, and then it is found a moment too
    late. Whoever sends it again takes its key first, or waits for it.
    """
    log.warning("a message may have been stored, and is sent again: %r", lost)
    until, pause_s = time.monotonic() + AGAIN_FOR_S, 0.05
    while time.monotonic() < until:
        connection.close()
        try:
            now = known.read(str(user.pk))
            if now is None or not now.is_active:
                break
            return accept(now)
        except Refused as refused:
            # True of this try; the first may yet come through. Who sends it again will hear.
            log.info("a message may have been stored, and is refused now: %s", refused)
            break
        except (OperationalError, InterfaceError) as error:
            log.warning("a message may have been stored, and the database does not take it: %r", error)
        time.sleep(pause_s)
        pause_s = min(1.0, 2 * pause_s)
    raise admission.counted(Refused(Refusal.UNAVAILABLE, _UNKNOWN, retry_after_s=RETRY_S, is_unknown=True))


def soon(write: Callable[[], _T]) -> _T:
    """Run ``write`` as `statements.step_by_step` does, and wait for a lock for ``LOCK_WAIT_S`` at most."""
    # The first try may hold its locks at the server for as long as that takes us for alive.
    return statements.step_by_step(write, lock_wait_s=LOCK_WAIT_S)
