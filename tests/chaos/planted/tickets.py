"""Lose or repeat Celery messages where they are sent: a waiting consumer has them from Redis before anyone can.

What is to happen stands in a file beside the control socket; what happened is counted, one byte each, in another.
"""

from __future__ import annotations

import collections
from pathlib import Path
from types import ModuleType
from typing import Any

REMEMBERED = 8  # messages to a queue that may come once more


def order_file(control: str | Path) -> Path:
    """Hold `drop` or `repeat` while that is to happen; it is not there otherwise."""
    return Path(control).with_name("tickets.order")


def count_file(control: str | Path) -> Path:
    """Grow by one byte for each message that was lost or came again."""
    return Path(control).with_name("tickets.count")


def unreliable(module: ModuleType, control: str) -> None:
    """Change `kombu.transport.redis`: what is put into the queues of workers and records obeys the order."""
    put = module.Channel._put
    order, count = order_file(control), count_file(control)
    earlier: dict[str, collections.deque[Any]] = collections.defaultdict(lambda: collections.deque(maxlen=REMEMBERED))

    def put_or_not(self: Any, queue: str, message: Any, **options: Any) -> None:
        if not queue.startswith(("generate.", "records")) or queue.endswith(".pidbox"):
            return put(self, queue, message, **options)
        try:
            wanted = order.read_text()
        except OSError:
            wanted = ""
        again = [message, *earlier[queue]] if wanted == "repeat" else []
        earlier[queue].append(message)
        if wanted:
            with count.open("a") as counted:
                counted.write("." * (len(again) or 1))
        if wanted == "drop":
            return None
        put(self, queue, message, **options)
        for each in again:
            put(self, queue, each, **options)
        return None

    module.Channel._put = put_or_not
