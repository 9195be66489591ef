"""Marks what a dead worker held as lost, so that the sweeper need not wait until its leases lapse.

Only the supervisor knows that the process is gone and that no other serves under its slot's name yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import redis

from chatproject.contract import names, scripts
from chatproject.contract.errors import ContractError
from chatproject.contract.messages import Lease

_TIMEOUT_S: Final = 1.0
_SCAN: Final = 2000


def mark(redis_url: str, slot: str) -> int:
    """Mark the leases of a slot whose process has ended; return how many. Redis away: none, they lapse by themselves.

    Call before the slot's next process starts.
    """
    try:
        with redis.Redis.from_url(
            redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, decode_responses=True
        ) as client:
            lose = client.register_script(scripts.LOSE.source)
            return sum(
                lose(keys=[names.lease_key(id_), names.LOST_KEY], args=[id_, lease, names.LOST_MS]) == "lost"
                for id_, lease in _leases(client, slot)
            )
    except (redis.RedisError, OSError):
        return 0


def _leases(client: redis.Redis, slot: str) -> Iterator[tuple[str, str]]:
    keys = sorted(client.scan_iter(match=names.lease_key("*"), count=_SCAN))
    leases: Any = client.mget(keys) if keys else []
    for key, lease in zip(keys, leases, strict=True):
        try:
            if lease and Lease.parse(lease).slot == slot:
                yield key.removeprefix(names.lease_key("")), lease
        except ContractError:
            continue
