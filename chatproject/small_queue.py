"""What a socket waits with. There are ten thousand of them, nearly all idle, and an asyncio.Queue takes 4 KB of each.

For one waiting task at a time, in one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Bell:
    """Wakes the task that waits; whoever comes before it has waited wakes nobody, so look before you wait."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake the task that waits, if one does."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until the bell is rung."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class SmallQueue(Generic[_T]):
    """First in, first out, without bound; holds nothing while it is empty."""

    __slots__ = ("_bell", "_items")

    def __init__(self) -> None:
        self._items: deque[_T] | None = None
        self._bell = Bell()

    def put(self, item: _T) -> None:
        """Add an item; returns at once."""
        if self._items is None:
            self._items = deque()
        self._items.append(item)
        self._bell.ring()

    async def get(self) -> _T:
        """Take the oldest item, when there is one."""
        while self._items is None:
            await self._bell.wait()
        item = self._items.popleft()
        if not self._items:
            self._items = None
        return item
