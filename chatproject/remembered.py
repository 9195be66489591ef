"""What an admin changes once a month and every message asks for: read once a second at most.

Whoever asks first after that second waits for the database, in an accept's transaction; `refresh_used` comes before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from django.db.models import Model
from django.db.models.signals import m2m_changed, post_delete, post_save

FOR_S: Final = 1.0
OLD_S: Final = 0.5  # and is refreshed ...
USED_S: Final = 30.0  # ... if it was asked for so long ago at most

_T = TypeVar("_T")
_all: list[Remembered[Any]] = []


class Remembered(Generic[_T]):
    """What ``read`` returned at most FOR_S ago. May be called from any thread; must not be changed by its readers.

    Saving or deleting a row of ``models`` in this process forgets it at once, other processes see it within FOR_S.
    """

    def __init__(self, read: Callable[[], _T]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._found: tuple[float, _T] | None = None
        self._used_at = float("-inf")
        self._version = 0
        _all.append(self)

    def __call__(self) -> _T:
        """Return the value; reads it when it is too old. Raises what ``read`` raises."""
        found, self._used_at = self._found, time.monotonic()
        if found is not None and self._used_at - found[0] < FOR_S:
            return found[1]
        return self.read()

    def read(self) -> _T:
        """Read the value anew and return it. Raises what ``read`` raises."""
        version, now = self._version, time.monotonic()
        value = self._read()
        with self._lock:
            if version == self._version:  # else it was forgotten meanwhile, and may be as old as that
                self._found = (now, value)
        return value

    def is_due(self) -> bool:
        """Whether somebody asked for it lately, and the next one might have to wait for it."""
        found, now = self._found, time.monotonic()
        return found is not None and now - found[0] > OLD_S and now - self._used_at < USED_S

    def forget(self, **_: object) -> None:
        """Read it anew the next time."""
        with self._lock:
            self._version += 1
            self._found = None

    def forget_when_saved(self, *models: type[Model]) -> None:
        """Forget whenever a row of these is saved or deleted here, or its many-to-many relations change."""
        for model in models:
            for signal in (post_save, post_delete):
                signal.connect(self.forget, sender=model, weak=False)
            for relation in model._meta.local_many_to_many:
                m2m_changed.connect(self.forget, sender=relation.remote_field.through, weak=False)


def is_any_due() -> bool:
    """Whether `refresh_used` has something to do."""
    return any(remembered.is_due() for remembered in _all)


def refresh_used() -> None:
    """Read anew what is asked for and soon too old. Raises what reading raises."""
    for remembered in _all:
        if remembered.is_due():
            remembered.read()


def forget_all() -> None:
    """Forget everything, as after a start."""
    for remembered in _all:
        remembered.forget()
