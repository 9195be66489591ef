"""Celery's side of the `records` process: it comes back soon after Redis does, and tells Flower in batches.

Named in `chatproject.celery` by strings: no web process needs it.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import celery.worker.consumer
from celery import bootsteps
from celery.worker import state

from chatproject.answer_limit import limit_answers
from chatproject.contract import broker

log = logging.getLogger(__name__)
EVENTS_S: Final = 0.5


class Consumer(celery.worker.consumer.Consumer):
    """Celery's consumer, but no end waits up to 30 s to be stored and shown after Redis is back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        limit_answers()
        super().__init__(*args, **kwargs)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, and say so while it takes."""

        def say(error: Exception, interval_s: float) -> None:
            log.error("no broker, again in %.1f s: %r", interval_s, error)

        return conn.ensure_connection(say, callback=state.maybe_shutdown, **broker.RECONNECT)


class EventsInBatches(bootsteps.StartStopStep):
    """Tell Flower twice a second: a message for each event takes longer than storing an end."""

    requires = ("celery.worker.consumer.events:Events", "celery.worker.consumer.tasks:Tasks")

    def start(self, c: Any) -> None:
        """Replace the flush after each event; again after a lost connection."""
        c.event_dispatcher.on_send_buffered = None
        self.timer = c.timer.call_repeatedly(EVENTS_S, c.event_dispatcher.flush)

    def stop(self, c: Any) -> None:
        """Tell what is left."""
        self.timer.cancel()
        c.event_dispatcher.flush()
