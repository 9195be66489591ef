"""Tickets as Celery messages made ahead, so that a message is enqueued and rung for in one step of Redis.

Celery takes longer to send a ticket than all else between the commit and the claim. So it makes one for each model and
lane, over kombu's transport in memory, and each ticket is that one with ids of its own. `dispatch.ring` sends those for
who waits without one.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import threading
import uuid
from typing import Final, NamedTuple

from kombu.connection import Connection

from chatproject.celery import app
from chatproject.contract import broker, names
from chatproject.contract.names import PRIORITY, Lane

_numbers: Final = itertools.count()
# kombu keeps what lies in memory once for the process, whoever put it there.
_forming = threading.Lock()
_ID: Final = "00000000-0000-4000-8000-000000000001"
_TAG: Final = "00000000-0000-4000-8000-000000000002"


class Ticket(NamedTuple):
    """A message, and the Redis list that it is put into."""

    key: str
    message: str


def make(model: str, lane: Lane | str) -> Ticket:
    """Return a ticket that was never sent before."""
    key, form = _form(model, Lane(lane))
    ids, tags = _families(os.getpid())
    number = f"{next(_numbers):012x}"
    return Ticket(key, form.replace(_ID, ids + number).replace(_TAG, tags + number))


@functools.cache
def _families(process: int) -> tuple[str, str]:
    """Return how this process's ids and tags begin: a uuid apiece would ask the kernel for chance twice a message."""
    return str(uuid.uuid4())[:-12], str(uuid.uuid4())[:-12]


@functools.cache
def _form(model: str, lane: Lane) -> tuple[str, str]:
    """Return the list, and a message with `_ID` and `_TAG` in the places of its ids."""
    queue = names.generate_queue(model)
    with _forming, Connection("memory://") as connection:
        app.send_task(
            names.GENERATE_TASK, task_id=_ID, queue=queue, priority=PRIORITY[lane], retry=False, ignore_result=True,
            connection=connection,
        )  # fmt: skip
        message = connection.default_channel._get(queue)
    message["properties"]["delivery_tag"] = _TAG
    return broker.redis_list(queue, PRIORITY[lane]), json.dumps(message)
