"""A Celery strategy: put the generation served in place of the ticket, before Celery makes a request of it.

So Flower, revoke and the log lines of Celery mean the generation, and a spare ticket leaves no trace.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from celery.utils.functional import noop
from celery.worker import state
from celery.worker.strategy import default as celery_strategy
from kombu.message import Message

from chatproject.contract import names
from chatproject.contract.errors import ContractError
from workers.store import AWAY, Claim

log = logging.getLogger(__name__)
HEADS: Final = 8  # per lane: others may be claiming the first ones right now


def strategy(task: Any, app: Any, consumer: Any, **_: Any) -> Callable[..., Any]:
    """Return the handler of tickets. Celery calls it in its main thread, for one ticket at a time."""
    inner = celery_strategy(task, app, consumer)
    pool = consumer.pool

    def on_ticket(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any) -> Any:
        queue = message.delivery_info["routing_key"]
        if app.amqp.queues[queue].no_ack:
            ack = reject = noop  # a real ack costs a round trip and leaks the tag
        claim = claim_best(pool.runtime, names.model_of_queue(queue))
        if claim is None:  # a spare ticket: no request, no event
            return ack(log, consumer.connection_errors)
        if claim.request.generation_id in state.revoked:
            # Celery would drop it without a word, and the sweeper would bring it back for ever.
            pool.runtime.begin(replace(claim, is_cancelled=True))
            return ack(log, consumer.connection_errors)
        pool.claims[claim.request.generation_id] = claim
        return inner(_served(message, claim), body, ack, reject, callbacks, **options)

    return on_ticket


def claim_best(runtime: Any, model: str) -> Claim | None:
    """Claim the first that waits, the next if refused; None when nobody does or Redis is away."""
    if model not in runtime.models:
        return None
    try:
        for lane, generation_id in runtime.store.heads(model, count=HEADS):
            try:
                claim: Claim | None = runtime.store.claim(
                    model=model, lane=lane, generation_id=generation_id,
                    slot=runtime.config.slot, boot=runtime.config.boot,
                )  # fmt: skip
            except ContractError as error:
                log.error("generation %s is not understood and left to its lease: %s", generation_id, error)
                continue
            if claim is not None:
                return claim
    except AWAY as error:  # raised here, it would restart the consumer
        log.warning("claim: %r", error)
    return None


def _served(message: Any, claim: Claim) -> Message:
    """Return a ticket that names the generation; a new message, because the old one has its body decoded and cached."""
    id_ = claim.request.generation_id
    headers = message.headers | {"id": id_, "root_id": id_, "argsrepr": f"('{id_}',)", "kwargsrepr": "{}"}
    return Message(
        json.dumps([[id_], {}, {}]), content_type="application/json", content_encoding="utf-8", headers=headers,
        properties=message.properties, delivery_info=message.delivery_info, accept={"application/json"},
    )  # fmt: skip
