"""The Celery app of the web side: it sends tickets, and runs `records` on a CPU worker."""

from __future__ import annotations

import os
from typing import Any, Final

from celery import Celery, bootsteps
from kombu.entity import Queue

from chatproject.contract import broker, names

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")

EVENTS_S: Final = 0.5

app = Celery("chatproject")
app.conf.update(broker.celery_settings())
app.conf.update(
    task_queues=[Queue(names.RECORDS_QUEUE)],
    task_default_queue=names.RECORDS_QUEUE,
    task_create_missing_queues=True,
    # Celery would close the database before and after each task; `finish` does so when it must.
    CELERY_DB_REUSE_MAX=1_000_000,
)


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


app.steps["consumer"].add(EventsInBatches)


def _configure() -> None:
    from django.conf import settings

    app.conf.broker_url = settings.REDIS_URL


_configure()
app.autodiscover_tasks(["chatproject.generations"])
