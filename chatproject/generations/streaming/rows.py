"""Rows of generations for the hub: what is asked for while a query runs is read by the next one, all at once.

With hundreds of readers who wait in the queue, each second asks for hundreds of rows; a query apiece took most of a
core.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from channels.db import database_sync_to_async

from chatproject.generations.models import Generation

AT_ONCE: Final = 500  # ids in a query; SQLite before 3.32 takes 999 parameters

# Not Channels' one thread per process: a slow query of one reader must not hold up the others.
in_database_thread = functools.partial(
    database_sync_to_async,
    thread_sensitive=False,
    executor=ThreadPoolExecutor(max_workers=4, thread_name_prefix="hub"),
)


class Rows:
    """Reads rows by id. Owned by one event loop."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Future[Generation | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def get(self, generation_id: str) -> Generation | None:
        """Return the row as it is stored now, without its request; None where there is none.

        Raises django.db.Error when the database does not answer.
        """
        future = self._asked.get(generation_id)
        if future is None:
            future = self._asked[generation_id] = asyncio.get_running_loop().create_future()
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read_all())
        return await asyncio.shield(future)  # whoever else asked must get it, too

    async def _read_all(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, {}
                ids = list(asked)
                for start in range(0, len(ids), AT_ONCE):
                    await self._read({id_: asked[id_] for id_ in ids[start : start + AT_ONCE]})
        finally:
            self._reading = None

    async def _read(self, asked: dict[str, asyncio.Future[Generation | None]]) -> None:
        try:
            found = await _read(list(asked))
        except Exception as error:
            for future in asked.values():
                future.set_exception(error)
                future.exception()  # seen, should nobody wait for it any more
            return
        for id_, future in asked.items():
            future.set_result(found.get(id_))


@in_database_thread
def _read(ids: Sequence[str]) -> dict[str, Generation]:
    return {str(row.id): row for row in Generation.objects.filter(id__in=ids).defer("request")}
