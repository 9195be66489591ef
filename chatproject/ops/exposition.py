"""`/metrics`: the counters of all processes, and what the queue and the workers look like now.

For loopback, or for who sends METRICS_TOKEN. Knows how to show, not what to count (that is `metrics`).
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from typing import Any

import redis
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from chatproject import metrics, redis_client
from chatproject.contract import names
from chatproject.contract.messages import WorkerStatus
from chatproject.generations import selectors
from chatproject.ops.worker_figures import WorkerFigures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def metrics_page(request: HttpRequest) -> HttpResponse:
    """Show the metrics, or 403 with the reason."""
    if not _may_see(request):
        return HttpResponse(
            "metrics: only from this machine, or with 'Authorization: Bearer <METRICS_TOKEN>'\n",
            status=403, content_type="text/plain",
        )  # fmt: skip
    return HttpResponse(await asyncio.to_thread(_render), content_type=CONTENT_TYPE)


def _may_see(request: HttpRequest) -> bool:
    sent = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    token = settings.METRICS_TOKEN
    if token and hmac.compare_digest(sent.encode(), token.encode()):
        return True
    # Behind a proxy on the same machine everybody comes from loopback, so a forwarded request is not from here.
    if "X-Forwarded-For" in request.headers or "Forwarded" in request.headers:
        return False
    try:
        return ipaddress.ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


def _render() -> bytes:
    now = CollectorRegistry()
    up = Gauge("chat_redis_up", "1 when Redis answers.", registry=now)
    waiting = Gauge("chat_generations_waiting", "Generations that wait.", ["model", "lane"], registry=now)
    running = Gauge("chat_generations_running", "Generations that run.", ["model"], registry=now)
    workers = Gauge("chat_workers_up", "Worker slots that answer.", ["model", "state"], registry=now)
    alive: list[WorkerStatus] = []
    try:
        for (model, lane), count in _waiting().items():
            waiting.labels(model, lane).set(count)
        alive = selectors.workers()
        for worker in alive:
            workers.labels(worker.model, worker.state).inc()
            running.labels(worker.model).inc(worker.running)
        up.set(1)
    except redis.RedisError:
        up.set(0)
    now.register(WorkerFigures(alive))
    return metrics.render() + generate_latest(now)


def _waiting() -> dict[tuple[str, str], int]:
    client = redis_client.client()
    keys = sorted(client.scan_iter(match=names.wait_key("*", "*"), count=500))
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.zcard(key)
    counts: list[Any] = pipeline.execute() if keys else []
    return {_model_and_lane(key): int(count) for key, count in zip(keys, counts, strict=True)}


def _model_and_lane(key: str) -> tuple[str, str]:
    _, model, lane = key.split(":")
    return model, lane
