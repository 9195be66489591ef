"""Tickets that nobody waits behind, sent when all has ended: they are taken, and start nothing."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path

import redis

from tests.chaos.cluster import Cluster

TAKEN_S = 15.0  # a worker may be starting
STARTED_S = 1.0  # after the last was taken
_RECEIVED = re.compile(r"Task chat\.generate\[([0-9a-f-]+)\] received")

# New ones for each lane, and some with the id of an answer that is there, as if they came once more.
_SEND = """
import uuid
from chatproject import redis_client
from chatproject.contract import names
from chatproject.generations import tickets
from chatproject.generations.models import Generation
ended, keys = Generation.objects.order_by("-accepted_at").values_list("id", "model")[:5], set()
for id_, model in ended:
    for lane in names.LANES:
        ticket = tickets.make(model, lane)
        again = json.loads(ticket.message)
        again["headers"]["id"] = again["properties"]["correlation_id"] = str(id_)
        again["properties"]["delivery_tag"] = str(uuid.uuid4())
        redis_client.client().lpush(ticket.key, ticket.message, json.dumps(again))
        keys.add(ticket.key)
print(json.dumps(sorted(keys)))
"""


def send(cluster: Cluster) -> list[str]:
    """Send them at rest, and return what was wrong: tasks that started, or tickets that nobody took."""
    logs = cluster.service.root / "var" / "log"
    before = received(logs)
    if not before:
        return ["no worker says what it starts"]
    keys: list[str] = cluster.read(_SEND)
    deadline = time.monotonic() + TAKEN_S
    while num := _num_left(cluster, keys):
        if time.monotonic() > deadline:
            return [f"{num} tickets were never taken"]
        time.sleep(0.1)
    time.sleep(STARTED_S)
    return [f"{id_} was started {num} times" for id_, num in (received(logs) - before).items()]


def received(logs: Path) -> Counter[str]:
    """Return how often workers say they started each generation."""
    return Counter(
        id_ for log in logs.glob("worker-*.log") for id_ in _RECEIVED.findall(log.read_text("utf-8", "replace"))
    )


def _num_left(cluster: Cluster, keys: list[str]) -> int:
    try:
        with cluster.redis() as client:
            return sum(client.llen(key) for key in keys)
    except redis.RedisError:
        return 1
