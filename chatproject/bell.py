"""What a socket's task waits with. There are ten thousand of them, nearly all idle, and an asyncio.Event takes more."""

from __future__ import annotations

import asyncio


class Bell:
    """Wakes the task that waits; whoever comes before it has waited wakes nobody, so look before you wait.

    For one waiting task at a time, in one event loop.
    """

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
