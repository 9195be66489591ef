"""How one sees from outside that a process is ready. Each probe answers within about a second and never raises."""

from __future__ import annotations

import http.client
from collections.abc import Callable

import redis
from celery import Celery

from chatproject.contract import names
from chatproject.contract.errors import ContractError
from chatproject.contract.messages import WorkerStatus
from chatproject.ops.up.process import Status


def http_ok(host: str, port: int, path: str) -> Callable[[], Status]:
    """Probe for a 200 at ``path``."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared, not bound

    def probe() -> Status:
        connection = http.client.HTTPConnection(address, port, timeout=2)
        try:
            connection.request("GET", path)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return Status(is_ready=False, detail="starting")
        finally:
            connection.close()
        return Status(is_ready=status == 200, detail=f"answers {status} at {path}")

    return probe


def worker_ready(redis_url: str, slot: str) -> Callable[[], Status]:
    """Probe for the worker's own word in Redis."""

    def probe() -> Status:
        try:
            with redis.Redis.from_url(redis_url, socket_timeout=1, socket_connect_timeout=1) as client:
                said = client.get(names.worker_key(slot))
            if not isinstance(said, bytes | str):
                return Status(is_ready=False, detail="starting")
            state = WorkerStatus.from_json(said).state
        except (redis.RedisError, OSError, ContractError) as error:
            return Status(is_ready=False, detail=f"waiting for Redis: {error}")
        return Status(is_ready=state == "ready", detail=f"{state} the model" if state == "loading" else state)

    return probe


def celery_answers(redis_url: str, node: str) -> Callable[[], Status]:
    """Probe for a Celery worker's answer to a ping; ``node`` is the part of its name before the @."""
    app = Celery(broker=redis_url)
    app.conf.update(broker_transport_options={"socket_timeout": 2, "socket_connect_timeout": 1})

    def probe() -> Status:
        try:
            answers = app.control.ping(timeout=0.7)
        except Exception:
            # kombu lets through whatever its transport raises; none of it is ours to stop at.
            return Status(is_ready=False, detail="starting")
        answered = any(name.partition("@")[0] == node for answer in answers or () for name in answer)
        return Status(is_ready=answered, detail="starting")

    return probe
