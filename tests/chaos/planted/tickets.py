"""Lose or repeat Celery messages where they are sent: a waiting consumer has them from Redis before anyone can.

What is to happen stands in a file beside the control socket; what happened is counted, one byte each, in another.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

REMEMBERED = 8  # messages to a queue that may come once more
AFTER_S = 0.02  # they come so long after the first one was sent


def order_file(control: str | Path) -> Path:
    """Hold `drop` or `repeat` while that is to happen; it is not there otherwise."""
    return Path(control).with_name("tickets.order")


def count_file(control: str | Path) -> Path:
    """Grow by one byte for each message that was lost or came again."""
    return Path(control).with_name("tickets.count")


class _Post:
    """What becomes of each message."""

    def __init__(self, control: str) -> None:
        self._order, self._count = order_file(control), count_file(control)
        self._earlier: dict[str, collections.deque[Any]] = collections.defaultdict(
            lambda: collections.deque(maxlen=REMEMBERED)
        )

    def times(self, queue: str, message: Any) -> tuple[bool, list[Any]]:
        """Return whether the message is sent at all, and what is sent again after it."""
        try:
            wanted = self._order.read_text()
        except OSError:
            wanted = ""
        again = [message, *self._earlier[queue]] if wanted == "repeat" else []
        self._earlier[queue].append(message)
        if wanted:
            with self._count.open("a") as counted:
                counted.write("." * (len(again) or 1))
        return wanted != "drop", again


def unreliable(module: ModuleType, control: str) -> None:
    """Change `kombu.transport.redis`: what is put into the queues of workers and records obeys the order."""
    put, post = module.Channel._put, _Post(control)

    def put_or_not(self: Any, queue: str, message: Any, **options: Any) -> None:
        if not queue.startswith(("generate.", "records")) or queue.endswith(".pidbox"):
            return put(self, queue, message, **options)
        is_sent, again = post.times(queue, message)
        if is_sent:
            put(self, queue, message, **options)
        for each in again:
            put(self, queue, each, **options)
        return None

    module.Channel._put = put_or_not


def unreliable_accepts(module: ModuleType, control: str) -> None:
    """Change `chatproject.generations.scripts`: the ticket that is sent with a message obeys the order, too."""
    form, post = module._enqueue, _Post(control)  # what both ways to enqueue are made of

    def form_or_not(request: Any, text: str, ticket: Any) -> Any:
        if ticket is None:
            return form(request, text, None)
        is_sent, again = post.times(ticket.key, ticket)
        if again:
            timer = threading.Timer(AFTER_S, _repeat, [module.redis_client.client(), again])
            timer.daemon = True
            timer.start()
        return form(request, text, ticket if is_sent else None)

    module._enqueue = form_or_not


def _repeat(client: Any, again: list[Any]) -> None:
    with contextlib.suppress(Exception):  # Redis is away: then nothing comes again
        for each in again:
            client.lpush(each.key, each.message)
