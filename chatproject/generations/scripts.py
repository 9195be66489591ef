"""The web side's calls of the protocol's atomic steps. Each takes ids and says what Redis answered.

Every call raises redis.RedisError when Redis is away; the row in the database is the truth, so callers may let it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from redis.commands.core import Script as BoundScript

from chatproject import redis_client
from chatproject.contract import names, scripts
from chatproject.contract.fairness import About
from chatproject.contract.frames import End
from chatproject.contract.messages import Control, GenerationRequest
from chatproject.generations.tickets import Ticket


@functools.cache
def _bound(script: scripts.Script) -> BoundScript:
    return redis_client.client().register_script(script.source)


def _call(script: scripts.Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
    return _bound(script)(keys=keys, args=args)


def flat(fields: Mapping[str, str]) -> list[str]:
    """Return field, value, field, value, ... as XADD takes them."""
    return [part for pair in fields.items() for part in pair]


def enqueue(request: GenerationRequest, ticket: Ticket | None = None) -> Literal["waiting", "leased", "ended"]:
    """Put an accepted generation among those that wait, once; if it waits then, ``ticket`` is sent in the same step."""
    answer: Literal["waiting", "leased", "ended"] = _call(
        scripts.ENQUEUE, *_enqueue(request, request.to_json(), ticket)
    )
    return answer


def post_enqueue(request: GenerationRequest, text: str, ticket: Ticket | None) -> Callable[[], Any] | None:
    """Send what `enqueue` sends, as `redis_client.Posting.send` does; ``text`` is the request's JSON. Never waits."""
    posting = redis_client.posting()
    if not posting.is_ready:
        return None
    keys, args = _enqueue(request, text, ticket)
    return posting.send("EVALSHA", _bound(scripts.ENQUEUE).sha, len(keys), *keys, *args)


def _enqueue(request: GenerationRequest, text: str, ticket: Ticket | None) -> tuple[list[str], list[Any]]:
    id_ = request.generation_id
    keys = [
        names.request_key(id_), names.wait_key(request.model, request.lane), names.lease_key(id_), names.log_key(id_)
    ]  # fmt: skip
    args: list[Any] = [id_, text, request.accepted_ms, names.REQUEST_MS, str(About.of(request))]
    if ticket is not None:
        keys.append(ticket.key)
        args.append(ticket.message)
    return keys, args


def cancel(*, generation_id: str, model: str, lane: str, end: End) -> tuple[str, str]:
    """Stop a generation: ``written`` (it waited), ``asked`` with the lease of its worker, or ``ended``."""
    keys = [
        names.wait_key(model, lane), names.log_key(generation_id), names.cancel_key(generation_id),
        names.lease_key(generation_id),
    ]  # fmt: skip
    answer = _call(scripts.CANCEL, keys, [generation_id, names.LOG_MS, *flat(end.entry())])
    return answer[0], answer[1] if len(answer) > 1 else ""


def end(*, generation_id: str, model: str, lane: str, end: End) -> str:
    """Write the end of a generation that nobody serves: ``ended``, ``leased``, or the entry's id."""
    keys = [names.log_key(generation_id), names.lease_key(generation_id), names.wait_key(model, lane)]
    answer: str = _call(scripts.END, keys, [generation_id, names.LOG_MS, *flat(end.entry())])
    return answer


def stored(*, generation_id: str, model: str, lane: str, end: End) -> list[str]:
    """Say in the log that the row is terminal and let go of all it held. Return the channels that watch."""
    keys = [
        names.log_key(generation_id), names.request_key(generation_id), names.lease_key(generation_id),
        names.cancel_key(generation_id), names.watch_key(generation_id), names.wait_key(model, lane),
    ]  # fmt: skip
    channels: list[str] = _call(scripts.STORED, keys, [generation_id, names.STORED_LOG_MS, *flat(end.entry())])
    return channels


def forget(generation_id: str) -> None:
    """Drop the log and all else of a generation whose row is gone; a worker that still runs it finds its log gone."""
    redis_client.client().delete(
        names.log_key(generation_id), names.request_key(generation_id), names.lease_key(generation_id),
        names.cancel_key(generation_id), names.watch_key(generation_id),
    )  # fmt: skip


def notify(watchers: str, *, now_ms: float, message: bytes) -> None:
    """Send a message to the channels that stand in a sorted set by their expiry."""
    _call(scripts.NOTIFY, [watchers], [now_ms, message])


def tell_worker(slot: str, word: Control) -> None:
    """Say a word on a worker's control channel; lost when it does not listen, so nothing may depend on it alone."""
    redis_client.client().publish(names.control_channel(slot), word.to_json())
