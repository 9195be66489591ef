"""Tickets made ahead are what Celery would send, and lie where kombu would put them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from chatproject.contract import broker, names
from chatproject.contract.names import PRIORITY, Lane
from chatproject.generations import dispatch, tickets

pytestmark = pytest.mark.needs("redis")


@pytest.mark.parametrize("lane", list(Lane))
def test_a_ticket_is_what_celery_sends(lane: Lane, server: redis.Redis) -> None:
    dispatch.ring("demo", lane)
    [key] = [key for key in broker.redis_lists(names.generate_queue("demo")) if server.exists(key)]
    sent = json.loads(server.rpop(key))
    ticket = tickets.make("demo", lane)
    made = json.loads(ticket.message)
    assert ticket.key == key
    for message in (sent, made):
        assert message["headers"]["id"] == message["headers"]["root_id"] == message["properties"]["correlation_id"]
        for field in ("id", "root_id", "origin"):
            del message["headers"][field]
        for field in ("correlation_id", "delivery_tag", "reply_to"):
            del message["properties"][field]
    assert made == sent


def test_no_two_tickets_are_the_same(server: redis.Redis) -> None:
    ids, tags = set(), set()
    for _ in range(100):
        message = json.loads(tickets.make("demo", Lane.VIP).message)
        ids.add(message["headers"]["id"])
        tags.add(message["properties"]["delivery_tag"])
    assert len(ids) == len(tags) == 100


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """The interpreter turns to another thread a thousand times as often."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_that_form_tickets_at_once_do_not_mix_them() -> None:
    barrier = threading.Barrier(len(Lane))

    def form(lane: Lane) -> list[str]:
        barrier.wait()
        return [tickets.make(f"model{number}", lane).message for number in range(50)]

    with ThreadPoolExecutor(len(Lane)) as threads:
        for lane, messages in zip(Lane, threads.map(form, Lane), strict=True):
            for number, message in enumerate(messages):
                properties = json.loads(message)["properties"]
                assert properties["priority"] == PRIORITY[lane]
                assert properties["delivery_info"]["routing_key"] == names.generate_queue(f"model{number}")
