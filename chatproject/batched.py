"""Reads by key that share a query: what is asked for while one runs is read by the next one, all at once.

With hundreds who come at one moment, a query apiece takes most of a core; alone, nobody waits for anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Final, Generic, TypeVar

AT_ONCE: Final = 500  # keys in a query; SQLite before 3.32 takes 999 parameters

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Batched(Generic[_K, _V]):
    """Gives what ``read`` returns, as it is after the question. Owned by one event loop."""

    def __init__(self, read: Callable[[Sequence[_K]], Awaitable[Mapping[_K, _V]]], *, at_once: int = AT_ONCE) -> None:
        self._read_many = read
        self._at_once = at_once
        self._asked: dict[_K, asyncio.Future[_V | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: _K) -> _V | None:
        """Return what is read for ``key``; None where ``read`` returns nothing for it.

        Raises what ``read`` raises, to all who asked with it; the next question is read anew.
        """
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = asyncio.get_running_loop().create_future()
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read_all())
        return await asyncio.shield(future)  # whoever else asked must get it, too

    async def _read_all(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, {}
                keys = list(asked)
                for start in range(0, len(keys), self._at_once):
                    await self._read({key: asked[key] for key in keys[start : start + self._at_once]})
        finally:
            self._reading = None

    async def _read(self, asked: Mapping[_K, asyncio.Future[_V | None]]) -> None:
        try:
            found = await self._read_many(list(asked))
        except Exception as error:
            for future in asked.values():
                future.set_exception(error)
                future.exception()  # seen, should nobody wait for it any more
            return
        for key, future in asked.items():
            future.set_result(found.get(key))
