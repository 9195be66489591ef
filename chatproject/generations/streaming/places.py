"""Tells those who wait where they are in the queue, beside all else: what this needs may hang."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from django import db

from chatproject.generations.streaming.queue_news import QueueNews
from chatproject.generations.streaming.stream import Stream
from chatproject.generations.streaming.truth import Truth
from chatproject.redis_client import AWAY, AsyncClient

log = logging.getLogger(__name__)


class Places:
    """One look at a time. Owned by one event loop."""

    def __init__(self, client: AsyncClient, truth: Truth) -> None:
        self._redis = client
        self._truth = truth
        self._is_telling = False

    async def tell(self, waiting: Sequence[Stream]) -> None:
        """Tell the readers of these; nothing while the last look is still under way. Never raises for who is away."""
        if self._is_telling:
            return
        self._is_telling = True
        try:
            await self._tell(waiting)
        except (*AWAY, db.Error) as error:
            log.warning("the places in the queue are not told: %r", error)
        finally:
            self._is_telling = False

    async def _tell(self, waiting: Sequence[Stream]) -> None:
        unknown = [stream for stream in waiting if not stream.news.is_known]
        rows = await asyncio.gather(*(self._truth.row(stream.id) for stream in unknown))
        for stream, row in zip(unknown, rows, strict=True):
            if row is not None:
                stream.news.learn(row)
        told = await QueueNews.read(self._redis, [stream.news for stream in waiting if stream.news.is_known])
        for stream in waiting:
            queued = told.get(stream.id)
            if queued is not None and not stream.is_started:
                for reader in list(stream.readers):
                    reader.on_queued(queued)
