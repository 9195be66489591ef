"""The worker's calls of the protocol's atomic steps. Knows Redis and the contract; nothing of Celery or the engine.

Two clients with short limits and no retries: a repeated write is never safe by chance, and every caller tries again in
its own time. Every call raises redis.RedisError when Redis is away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from chatproject.contract import frames, names, scripts
from chatproject.contract.frames import Log
from chatproject.contract.messages import GenerationRequest, Lease
from chatproject.contract.names import Lane

Entry = tuple[str, dict[str, str]]  # id, fields
AWAY = (redis.RedisError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A generation that is this worker's to run."""

    request: GenerationRequest
    lease: Lease
    score: float  # its place in the queue, kept for a hand-back
    is_cancelled: bool
    prefix: Log  # what earlier runs have shown
    entries: tuple[Entry, ...]  # the same, as it lies in the log, the start of this run included
    channels: tuple[str, ...]  # who watches


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What Redis says of a lease: ok, cancel, stored, lost; and the last entry of its log."""

    verdict: str
    last_id: str


class Store:
    """One connection pool. Thread-safe."""

    def __init__(self, redis_url: str, *, timeout_s: float = 1.0) -> None:
        self.client: redis.Redis = redis.Redis.from_url(
            redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, health_check_interval=15,
            retry=None, decode_responses=True,
        )  # fmt: skip
        self._scripts = {script.name: self.client.register_script(script.source) for script in scripts.ALL}

    def heads(self, model: str, *, count: int) -> list[tuple[Lane, str]]:
        """Return the first ids that wait, lane by lane in order of service."""
        pipe = self.client.pipeline(transaction=False)
        for lane in names.LANES:
            pipe.zrange(names.wait_key(model, lane), 0, count - 1)
        return [(lane, id_) for lane, ids in zip(names.LANES, pipe.execute(), strict=True) for id_ in ids]

    def claim(self, *, model: str, lane: Lane, generation_id: str, slot: str, boot: str) -> Claim | None:
        """Take a generation out of the queue. None when another was first, or it may not run. Raises ContractError."""
        keys = [
            names.wait_key(model, lane), names.request_key(generation_id), names.lease_key(generation_id),
            names.log_key(generation_id), names.cancel_key(generation_id), names.watch_key(generation_id),
        ]  # fmt: skip
        args: list[Any] = [generation_id, f"{slot}:{boot}", names.LEASE_MS, names.LOG_MS]
        answer: Any = self._scripts["claim"](keys=keys, args=args)
        if answer[0] != "claimed":
            return None
        _, run, request_json, score, cancelled, rows, channels = answer
        request = GenerationRequest.from_json(request_json)
        entries = [(id_, dict(zip(*[iter(fields)] * 2, strict=True))) for id_, fields in rows]
        entries.append((f"{run}-0", {"k": "start", "by": f"{slot}:{boot}"}))
        return Claim(
            request=request,
            lease=Lease(slot=slot, boot=boot, run=int(run)),
            score=float(score),
            is_cancelled=bool(cancelled),
            prefix=frames.fold(generation_id, entries),
            entries=tuple(entries),
            channels=(*channels, *((request.watcher,) if request.watcher else ())),
        )

    def renew(self, leases: Sequence[tuple[str, Lease]]) -> list[Renewal]:
        """Renew all leases in one pipeline; each answer stands where its lease stood."""
        if not leases:
            return []
        pipe = self.client.pipeline(transaction=False)
        for generation_id, lease in leases:
            keys = [names.lease_key(generation_id), names.log_key(generation_id), names.cancel_key(generation_id)]
            self._scripts["renew"](keys=keys, args=[str(lease), lease.run, names.LEASE_MS], client=pipe)
        return [Renewal(verdict=verdict, last_id=last) for verdict, last in pipe.execute()]

    def append(self, writes: Sequence[tuple[str, int, str, Sequence[Entry]]]) -> list[str | Exception]:
        """Append to many logs in one pipeline: (generation id, run, expected last id, entries) each.

        An answer is ok, gone, newer, ended or ``short:<last id>``; an exception is one script's own.
        """
        pipe = self.client.pipeline(transaction=False)
        for generation_id, run, expected, entries in writes:
            args: list[Any] = [expected, names.LOG_MS, run, len(entries)]
            for id_, fields in entries:
                args += [id_, len(fields), *flat(fields)]
            self._scripts["append"](keys=[names.log_key(generation_id)], args=args, client=pipe)
        answers: list[str | Exception] = pipe.execute(raise_on_error=False)
        return answers

    def hand_back(self, claim: Claim) -> str:
        """Give a generation back to the queue, at its old place: waiting, lost or cancelled."""
        id_ = claim.request.generation_id
        keys = [
            names.lease_key(id_), names.wait_key(claim.request.model, claim.request.lane), names.log_key(id_),
            names.cancel_key(id_),
        ]  # fmt: skip
        answer: str = self._scripts["hand_back"](keys=keys, args=[id_, str(claim.lease), claim.score, claim.lease.run])
        return answer


def flat(fields: Mapping[str, str]) -> list[str]:
    """Return field, value, field, value, ... as XADD takes them."""
    return [part for pair in fields.items() for part in pair]
