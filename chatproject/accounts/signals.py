"""What the apps above must do before an account goes. Accounts knows none of them, so it only says that it happens."""

from __future__ import annotations

from typing import Final

from django.dispatch import Signal

# Sent with ``user`` inside the transaction that deletes: receivers stop and settle what the user still has running.
user_leaving: Final = Signal()
