"""The web side's counters and histograms. Lies low, so that every part can count; `ops` shows them.

Web and records are several processes: with PROMETHEUS_MULTIPROC_DIR set (before start, an empty directory that they
share) each writes its own file there and any web process shows the sum.
"""

from __future__ import annotations

import os
from pathlib import Path

if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    # prometheus_client reads the variable at import and fails without the directory.
    Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).mkdir(parents=True, exist_ok=True)

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess

from chatproject.contract.messages import Usage

REGISTRY = CollectorRegistry()

_accepted = Counter("chat_generations_accepted_total", "Generations accepted.", ["lane"], registry=REGISTRY)
_refused = Counter("chat_generations_refused_total", "Generations refused.", ["code"], registry=REGISTRY)
_ended = Counter("chat_generations_ended_total", "Generations ended.", ["status"], registry=REGISTRY)
_tokens = Counter("chat_tokens_total", "Tokens of ended generations.", ["kind"], registry=REGISTRY)
_gpu_seconds = Counter("chat_gpu_seconds_total", "Engine seconds of ended generations.", registry=REGISTRY)
_queue = Histogram(
    "chat_queue_seconds", "Accepted to claimed, of ended generations.", registry=REGISTRY,
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)  # fmt: skip
_prefill = Histogram(
    "chat_prefill_seconds", "Claimed to first token, of ended generations that had one.", registry=REGISTRY,
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)  # fmt: skip
_decode = Histogram(
    "chat_decode_seconds", "First token to end, of ended generations that had one.", registry=REGISTRY,
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)  # fmt: skip
_rate = Histogram(
    "chat_tokens_per_second", "Tokens per second of one generation, after its first token.", registry=REGISTRY,
    buckets=(1, 2.5, 5, 10, 20, 30, 50, 75, 100, 150, 250, 500),
)  # fmt: skip
_rows = Histogram(
    "chat_batched_rows", "Mean rows of the decode steps of one generation.", registry=REGISTRY,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)  # fmt: skip
_requests = Counter("chat_api_responses_total", "Answers of the API.", ["route", "status"], registry=REGISTRY)


def accepted(*, lane: str) -> None:
    """Count an accepted generation."""
    _accepted.labels(str(lane)).inc()


def refused(*, code: str) -> None:
    """Count a refusal."""
    _refused.labels(str(code)).inc()


def ended(*, status: str, usage: Usage) -> None:
    """Count a stored end and what it took."""
    _ended.labels(str(status)).inc()
    _tokens.labels("prompt").inc(max(0, usage.prompt_tokens))
    _tokens.labels("completion").inc(max(0, usage.completion_tokens))
    _tokens.labels("cached").inc(max(0, usage.cached_tokens))
    _gpu_seconds.inc(max(0.0, usage.engine_s))
    _queue.observe(usage.queue_ms / 1000)
    if usage.decode_ms:
        _prefill.observe(usage.prefill_ms / 1000)
        _decode.observe(usage.decode_ms / 1000)
    if usage.tokens_per_s > 0:
        _rate.observe(usage.tokens_per_s)
    if usage.mean_rows > 0:
        _rows.observe(usage.mean_rows)


def api_answered(*, route: str, status: int) -> None:
    """Count an answer of the API."""
    _requests.labels(route, str(status)).inc()


def render() -> bytes:
    """Return the counters in Prometheus' text form: of all processes where they share a directory, else of this one."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
    return generate_latest(REGISTRY)
