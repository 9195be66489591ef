"""The Celery app of a worker process: ``celery -A workers.app worker --pool=custom``."""

from __future__ import annotations

from celery import Celery

from chatproject.contract import broker
from workers import config
from workers.bootsteps import Doorman

app = Celery("workers")
app.conf.update(broker.celery_settings())
app.conf.update(
    broker_url=config.read().redis_url,
    imports=["workers.tasks"],
    worker_consumer="workers.bootsteps:Consumer",
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # No queue is open until a model is loaded: the doorman adds it.
    task_queues=[],
    task_create_missing_queues=True,
    task_default_queue="workers.none",
)
app.steps["consumer"].add(Doorman)
