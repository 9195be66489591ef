"""Keys in Redis by which workers and announcers know to which web processes they send, each with an expiry."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Final

from chatproject import service_clock
from chatproject.batched import Batched
from chatproject.contract import names
from chatproject.contract.errors import ContractError
from chatproject.contract.messages import Control, Lease
from chatproject.redis_client import AWAY, AsyncClient

log = logging.getLogger(__name__)
WATCHES_AT_ONCE: Final = 64


class Watches:
    """Registers one web process's ``channel``. Owned by one event loop."""

    def __init__(self, client: AsyncClient) -> None:
        self.channel = ""
        self._redis = client
        self._late: Batched[str, None] = Batched(self._watch, at_once=WATCHES_AT_ONCE)

    async def watch_late(self, generation_id: str) -> None:
        """Register for a generation that may run, then tell its worker: a log read after this misses nothing.

        Never raises for a Redis that is away: then the log is read until it is told again.
        """
        try:
            await self._late.get(generation_id)
        except AWAY as error:
            log.warning("%s is read from its log: %r", generation_id, error)

    async def keep(self, keys: Sequence[str]) -> None:
        """Register under these keys, or once more before they expire. Raises what a Redis that is away does."""
        pipe = self._redis.pipeline(transaction=True)
        self._register(pipe, keys)
        await pipe.execute()

    async def _watch(self, ids: Sequence[str]) -> dict[str, None]:
        pipe = self._redis.pipeline(transaction=True)
        self._register(pipe, [names.watch_key(id_) for id_ in ids])
        pipe.mget([names.lease_key(id_) for id_ in ids])
        *_, leases = await pipe.execute()
        pipe = self._redis.pipeline(transaction=False)
        for id_, lease in zip(ids, leases, strict=True):
            with contextlib.suppress(ContractError):  # of another version; its log is read
                if lease:
                    word = Control(kind="watch", generation_id=id_, channel=self.channel)
                    pipe.publish(names.control_channel(Lease.parse(lease).slot), word.to_json())
        await pipe.execute()
        return {}

    def _register(self, pipe: Any, keys: Sequence[str]) -> None:
        # In a transaction: whoever is killed in the middle leaves no key for ever.
        for key in keys:
            pipe.zadd(key, {self.channel: service_clock.now_ms() + names.WATCH_MS})
            pipe.pexpire(key, names.WATCH_MS)
