"""The worker's calls of the protocol's atomic steps. Knows Redis and the contract; nothing of Celery or the engine.

Two clients with short limits and no retries: a repeated write is never safe by chance, and every caller tries again in
its own time. Every call raises redis.RedisError when Redis is away.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack
import redis

from chatproject.contract import frames, names, scripts
from chatproject.contract.errors import FAILURE_TEXT, ContractError, Failure
from chatproject.contract.fairness import About, Candidate, Costs, WaitingLane, waiting_lanes
from chatproject.contract.frames import End, Log
from chatproject.contract.messages import GenerationRequest, Lease
from chatproject.contract.names import Lane
from workers.errors import Expired, NotUnderstood

Entry = tuple[str, dict[str, str]]  # id, fields
_EXPIRED: Final = End(status="expired", code=Failure.EXPIRED, message=FAILURE_TEXT[Failure.EXPIRED]).entry()
AWAY = (redis.RedisError, OSError)
# After a cut, which Redis may have come back from with less than it had: by then whoever runs something has said so.
SETTLE_S: Final = 1.25
# Of one call. After a loss whole logs are written again, and Redis serves nobody during a call.
MOST_FIELDS: Final = 4_096


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
    charged: float = 0.0  # cost that its user was charged for it at the claim
    is_guaranteed: bool = False  # it is its lane's minimum share: no higher lane pushes it out


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What Redis says of a lease: ok, cancel, stored, lost; and the last entry of its log."""

    verdict: str
    last_id: str


class _Client(redis.Redis):
    """Keeps a connection for each thread: to take one from the pool, with all that is counted, costs more than to ask.

    Pipelines use the pool.
    """

    cut_at = float("-inf")  # when a connection was last seen to have ended

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._own = threading.local()

    def look_for_cut(self) -> None:
        """See whether this thread's connection has ended since it was used."""
        connection = getattr(self._own, "connection", None)
        if connection is not None and connection.is_connected:
            self._end_if_cut(connection)

    def _end_if_cut(self, connection: Any) -> None:
        try:
            is_cut = connection.can_read(timeout=0)  # there is nothing to read but its end
        except redis.ConnectionError:
            is_cut = True
        if is_cut:
            connection.disconnect()
            self.cut_at = time.monotonic()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command and return its answer. Raises redis.RedisError; then it is not known whether it was run."""
        connection = getattr(self._own, "connection", None)
        if connection is None:
            pool = self.connection_pool
            connection = self._own.connection = pool.connection_class(**pool.connection_kwargs)
        try:
            if connection.is_connected:
                self._end_if_cut(connection)
            connection.send_command(*args, check_health=False)
            return self.parse_response(connection, args[0], **options)  # type: ignore[no-untyped-call]
        except redis.ResponseError:
            raise
        except BaseException:
            connection.disconnect()
            self.cut_at = time.monotonic()
            raise


class Store:
    """Its calls. Thread-safe."""

    def __init__(self, redis_url: str, *, timeout_s: float = 1.0) -> None:
        self.client: _Client = _Client.from_url(  # type: ignore[assignment]
            redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, health_check_interval=15,
            retry=None, decode_responses=True,
        )  # fmt: skip
        self._scripts = {script.name: self.client.register_script(script.source) for script in scripts.ALL}

    def is_settled(self) -> bool:
        """Say whether what waits does wait: not so soon after Redis began again, when it may have forgotten claims."""
        self.client.look_for_cut()
        return time.monotonic() - self.client.cut_at >= SETTLE_S

    def look(self, model: str, *, num_users: int, num_ids: int) -> list[WaitingLane]:
        """Return who waits: of each lane the first users by turn, and of each user the first ids."""
        keys = [names.wait_key(model, lane) for lane in names.LANES]
        _, lanes = waiting_lanes(self._evaluated("look", keys, [num_users, num_ids]))
        return lanes

    def waits_in(self, model: str, lanes: Sequence[Lane]) -> bool:
        """Say whether anybody waits in one of these lanes."""
        return bool(lanes) and bool(self.client.exists(*(names.wait_key(model, lane) for lane in lanes)))

    def claim(self, *, model: str, lane: Lane, generation_id: str, slot: str, boot: str) -> Claim | None:
        """Take a generation out of the queue. None when another was first, or it may not run.

        Raises NotUnderstood when its request is of a version that this worker does not read; it waits again then.
        """
        answer = self._claim(model, lane, generation_id, slot, boot)
        if answer[0] != "claimed":
            return None
        return self._understood(answer, model, lane, generation_id, slot, boot)

    def claim_fairly(
        self, candidate: Candidate, *, model: str, slot: str, boot: str, cost: float, takes_last: bool = True
    ) -> Claim | None:
        """Claim, and charge the user the expected ``cost`` in the same step.

        None when another was first, or it may not run: also when it is on its last attempt and ``takes_last`` is not
        given. Raises Expired when its deadline had passed before it ever ran; it has ended so. Raises NotUnderstood
        as `claim` does.
        """
        terms = [cost, int(takes_last), *flat(_EXPIRED)]
        answer = self._claim(model, candidate.lane, candidate.generation_id, slot, boot, *terms)
        if answer[0] == "expired":
            raise Expired(candidate.generation_id)
        if answer[0] != "claimed":
            return None
        claim = self._understood(answer, model, candidate.lane, candidate.generation_id, slot, boot)
        return replace(claim, charged=cost, is_guaranteed=candidate.is_guaranteed)

    def claim_sole(
        self, model: str, costs: Costs, *, slot: str, boot: str, takes_last: bool, num_users: int, num_ids: int
    ) -> Claim | list[WaitingLane]:
        """Claim the only one that waits, as `claim_fairly` does, else return who waits, as `look` does."""
        keys = [names.wait_key(model, lane) for lane in names.LANES]
        args: list[Any] = [
            f"{slot}:{boot}", names.LEASE_MS, names.LOG_MS, int(takes_last), num_users, num_ids, costs.per_byte,
            len(keys), *(costs.per_lane[lane] for lane in names.LANES), *flat(_EXPIRED),
        ]  # fmt: skip
        kind, *answer = self._evaluated("claim_sole", keys, args)
        if kind == "look":
            _, lanes = waiting_lanes(answer[0])
            return lanes
        id_, where, cost, claimed = answer
        if claimed[0] == "expired":
            raise Expired(id_)
        claim = self._understood(claimed, model, names.LANES[where - 1], id_, slot, boot)
        return replace(claim, charged=float(cost))

    def charge(self, charges: Sequence[tuple[str, Lane, str, float, float]]) -> None:
        """Charge users for service, or give back, in one pipeline: (model, lane, user id, weight, cost) each."""
        if not charges:
            return
        self._pipelined(
            "charge",
            [
                ([names.wait_key(model, lane)], [user_id, weight, cost])
                for model, lane, user_id, weight, cost in charges
            ],
        )

    def renew(self, leases: Sequence[tuple[str, Lease]]) -> list[Renewal]:
        """Renew all leases in one pipeline; each answer stands where its lease stood."""
        if not leases:
            return []
        calls = [
            (
                [names.lease_key(generation_id), names.log_key(generation_id), names.cancel_key(generation_id)],
                [str(lease), lease.run, names.LEASE_MS],
            )
            for generation_id, lease in leases
        ]
        return [Renewal(verdict=verdict, last_id=last) for verdict, last in self._pipelined("renew", calls)]

    def append(
        self, writes: Sequence[tuple[str, int, str, Sequence[Entry]]], messages: Sequence[tuple[str, bytes]] = ()
    ) -> list[str]:
        """Append to many logs in few calls: (generation id, run, expected last id, entries) each.

        An answer is ok, gone, newer, ended, ``short:<last id>`` or ``failed:<why>``, which stops no other. If all are
        ok, Redis has then sent the messages, (channel, message) each.
        """
        answers: list[str] = []
        keys: list[str] = []
        logs: list[tuple[int, str, list[list[str]]]] = []
        size = 0
        for generation_id, run, expected, entries in writes:
            if size > MOST_FIELDS:
                answers += self._append(keys, logs)
                keys, logs, size = [], [], 0
            packed = []
            for id_, fields in entries:
                entry = [id_]
                for pair in fields.items():
                    entry += pair
                packed.append(entry)
                size += len(entry)
            keys.append(names.log_key(generation_id))
            logs.append((run, expected, packed))
        if keys:
            # The last call is of some of the logs; what it sends is of all of them.
            answers += self._append(keys, logs, messages if all(answer == "ok" for answer in answers) else ())
        return answers

    def _append(self, keys: Sequence[str], logs: Sequence[Any], messages: Sequence[tuple[str, bytes]] = ()) -> Any:
        # One argument: redis-py takes longer over a dozen for each log than Redis takes to unpack them.
        return self._evaluated("append", keys, [names.LOG_MS, msgpack.packb(logs), *itertools.chain(*messages)])

    def hand_back(self, claim: Claim) -> str:
        """Give a generation back to the queue, at its old place: waiting, lost or cancelled."""
        id_ = claim.request.generation_id
        keys = [
            names.lease_key(id_), names.wait_key(claim.request.model, claim.request.lane), names.log_key(id_),
            names.cancel_key(id_),
        ]  # fmt: skip
        about = str(About.of(claim.request))
        args: list[Any] = [id_, str(claim.lease), claim.score, claim.lease.run, about]
        answer: str = self._scripts["hand_back"](keys=keys, args=args)
        return answer

    def _evaluated(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run one script once, in one round trip."""
        try:
            return self.client.evalsha(self._scripts[name].sha, len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            return self._scripts[name](keys=keys, args=args)  # Redis has begun anew

    def _pipelined(self, name: str, calls: Sequence[tuple[list[str], list[Any]]]) -> list[Any]:
        """Run one script many times, (keys, args) each, in one round trip; redis-py would first ask if Redis has it."""
        for is_known in (False, True):
            pipe = self.client.pipeline(transaction=False)
            for keys, args in calls:
                pipe.evalsha(self._scripts[name].sha, len(keys), *keys, *args)
            answers: list[Any] = pipe.execute(raise_on_error=False)
            if is_known or not any(isinstance(answer, redis.exceptions.NoScriptError) for answer in answers):
                break
            # Redis has begun anew, so it has run none of them.
            self.client.script_load(self._scripts[name].script)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _understood(self, answer: Any, model: str, lane: Lane, id_: str, slot: str, boot: str) -> Claim:
        try:
            return _claim_of(answer, slot, boot)
        except ContractError as error:
            # Left to its lease, it would count as a death: three such claims by an old worker were the end of it.
            keys = [names.lease_key(id_), names.wait_key(model, lane), names.log_key(id_), names.cancel_key(id_)]
            self._scripts["hand_back"](keys=keys, args=[id_, f"{slot}:{boot}:{answer[1]}", answer[3], answer[1]])
            raise NotUnderstood(id_, error) from error

    def _claim(self, model: str, lane: Lane, id_: str, slot: str, boot: str, *terms: Any) -> Any:
        keys = [
            names.wait_key(model, lane), names.request_key(id_), names.lease_key(id_), names.log_key(id_),
            names.cancel_key(id_), names.watch_key(id_),
        ]  # fmt: skip
        args: list[Any] = [id_, f"{slot}:{boot}", names.LEASE_MS, names.LOG_MS, *terms]
        return self._evaluated("claim", keys, args)


def _claim_of(answer: Any, slot: str, boot: str) -> Claim:
    _, run, request_json, score, cancelled, rows, channels = answer
    request = GenerationRequest.from_json(request_json)
    entries = [(id_, dict(zip(*[iter(fields)] * 2, strict=True))) for id_, fields in rows]
    entries.append((f"{run}-0", {"k": "start", "by": f"{slot}:{boot}"}))
    return Claim(
        request=request,
        lease=Lease(slot=slot, boot=boot, run=int(run)),
        score=float(score),
        is_cancelled=bool(cancelled),
        prefix=frames.fold(request.generation_id, entries),
        entries=tuple(entries),
        channels=(*channels, *((request.watcher,) if request.watcher else ())),
    )


def flat(fields: Mapping[str, str]) -> list[str]:
    """Return field, value, field, value, ... as XADD takes them."""
    return [part for pair in fields.items() for part in pair]
