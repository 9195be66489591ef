"""The Celery app of the web side: it sends tickets, and runs `records` on a CPU worker."""

from __future__ import annotations

import os

from celery import Celery
from kombu.entity import Queue

from chatproject.contract import broker, names

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")

app = Celery("chatproject")
app.conf.update(broker.celery_settings())
app.conf.update(
    task_queues=[Queue(names.RECORDS_QUEUE)],
    task_default_queue=names.RECORDS_QUEUE,
    task_create_missing_queues=True,
    worker_consumer="chatproject.records_worker:Consumer",
    # Celery would close the database before and after each task; `finish` does so when it must.
    CELERY_DB_REUSE_MAX=1_000_000,
)
app.steps["consumer"].add("chatproject.records_worker:EventsInBatches")


def _configure() -> None:
    from django.conf import settings

    app.conf.broker_url = settings.REDIS_URL


_configure()
app.autodiscover_tasks(["chatproject.generations"])
