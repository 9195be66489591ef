"""The Celery messages a worker sends: a ticket for who waits, and the wish to store an end. Ids only."""

from __future__ import annotations

from typing import Any

from chatproject.contract import broker, names
from chatproject.contract.names import Lane
from workers.config import Config


def ring(app: Any, config: Config, lane: str) -> None:
    """Send one ticket: someone waits for this model. Raises kombu's OperationalError."""
    app.send_task(
        names.GENERATE_TASK, queue=names.generate_queue(config.slug), retry=False, ignore_result=True,
        priority=broker.priority_of(Lane(lane), broker_url=config.redis_url),
    )  # fmt: skip


def ask_to_store(app: Any, generation_id: str) -> None:
    """Ask `records` to copy the end of a generation to its row. Raises kombu's OperationalError."""
    app.send_task(
        names.RECORDS_FINISH_TASK, args=[generation_id], queue=names.RECORDS_QUEUE, retry=False, ignore_result=True
    )
