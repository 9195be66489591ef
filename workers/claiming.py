"""A Celery strategy: put the generation served in place of the ticket, before Celery makes a request of it.

So Flower, revoke and the log lines of Celery mean the generation, and a spare ticket leaves no trace.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from celery.utils.functional import noop
from celery.worker import state
from celery.worker.strategy import default as celery_strategy
from kombu.message import Message

from chatproject.contract import names
from chatproject.contract.fairness import Candidate, Costs, WaitingLane, candidates
from workers.errors import Expired, NotUnderstood
from workers.store import AWAY, Claim, Store

log = logging.getLogger(__name__)
# A look sees a few users of each lane and a few of each one's line: others may be claiming the first ones right now.
NUM_USERS: Final = 4
NUM_IDS: Final = 2
REMEMBERED: Final = 10_000  # ids of requests that are for workers of another version
LOOKS: Final = 8  # after which a ticket is given up; the next second rings again


def strategy(task: Any, app: Any, consumer: Any, **_: Any) -> Callable[..., Any]:
    """Return the handler of tickets. Celery calls it in its main thread, for one ticket at a time."""
    inner = celery_strategy(task, app, consumer)
    pool = consumer.pool

    def on_ticket(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any) -> Any:
        queue = message.delivery_info["routing_key"]
        if app.amqp.queues[queue].no_ack:
            ack = reject = noop  # a real ack costs a round trip and leaks the tag
        guest, pool.room_is_for = pool.room_is_for, None
        takes_last = not pool.holds_last_attempt
        claim = claim_best(pool.runtime, names.model_of_queue(queue), takes_last=takes_last, guest=guest)
        if claim is None:  # a spare ticket: no request, no event
            return ack(log, consumer.connection_errors)
        if claim.request.generation_id in state.revoked:
            # Celery would drop it without a word, and the sweeper would bring it back for ever.
            pool.runtime.begin(replace(claim, is_cancelled=True))
            return ack(log, consumer.connection_errors)
        pool.begin(claim)
        return inner(_served(message, claim), body, ack, reject, callbacks, **options)

    return on_ticket


def claim_best(runtime: Any, model: str, *, takes_last: bool = True, guest: str | None = None) -> Claim | None:
    """Claim the one whose turn it is, the next if refused; None when nobody may be claimed or Redis is not itself.

    Without ``takes_last`` nobody who is on the last attempt; ``guest``, for whom a place was made, before all others.
    """
    if model not in runtime.models or not runtime.store.is_settled():
        return None
    seen: set[str] = set()
    costs = runtime.charges.expected_costs()
    try:
        for _ in range(LOOKS):
            lanes = _claim_sole_or_look(runtime, model, costs, takes_last)
            if isinstance(lanes, Claim):
                return lanes
            found = candidates(lanes, costs.of, takes_last=takes_last)
            found.sort(key=lambda candidate: candidate.generation_id != guest)
            claim = _claim_first(runtime, model, costs, found, takes_last)
            ids = {candidate.generation_id for candidate in found}
            if claim is not None or ids <= seen:
                return claim
            seen |= ids
    except AWAY as error:  # raised here, it would restart the consumer
        log.warning("claim: %r", error)
    return None


def _claim_sole_or_look(runtime: Any, model: str, costs: Costs, takes_last: bool) -> Claim | list[WaitingLane]:
    """Claim the only one that waits; else return who waits."""
    store: Store = runtime.store
    if not runtime.not_understood:  # else it may be one of these
        config = runtime.config
        try:
            return store.claim_sole(
                model, costs, slot=config.slot, boot=config.boot, takes_last=takes_last, num_users=NUM_USERS,
                num_ids=NUM_IDS,
            )  # fmt: skip
        except (Expired, NotUnderstood) as error:
            _leave(runtime, error)
    return store.look(model, num_users=NUM_USERS, num_ids=NUM_IDS)


def _claim_first(runtime: Any, model: str, costs: Costs, found: Sequence[Candidate], takes_last: bool) -> Claim | None:
    for candidate in found:
        if candidate.generation_id in runtime.not_understood:
            continue
        cost = costs.of(candidate.lane, candidate.about)
        try:
            claim: Claim | None = runtime.store.claim_fairly(
                candidate, model=model, slot=runtime.config.slot, boot=runtime.config.boot, cost=cost,
                takes_last=takes_last,
            )  # fmt: skip
        except (Expired, NotUnderstood) as error:
            _leave(runtime, error)
            continue
        if claim is not None:
            return claim
    return None


def _leave(runtime: Any, error: Expired | NotUnderstood) -> None:
    if isinstance(error, Expired):
        runtime.ask_to_store(error.generation_id)
        return
    log.error("generation %s is not understood and left to others: %s", error.generation_id, error)
    runtime.not_understood[error.generation_id] = None
    if len(runtime.not_understood) > REMEMBERED:
        del runtime.not_understood[next(iter(runtime.not_understood))]


def _served(message: Any, claim: Claim) -> Message:
    """Return a ticket that names the generation; a new message, because the old one has its body decoded and cached."""
    id_ = claim.request.generation_id
    headers = message.headers | {"id": id_, "root_id": id_, "argsrepr": f"('{id_}',)", "kwargsrepr": "{}"}
    return Message(
        json.dumps([[id_], {}, {}]), content_type="application/json", content_encoding="utf-8", headers=headers,
        properties=message.properties, delivery_info=message.delivery_info, accept={"application/json"},
    )  # fmt: skip
