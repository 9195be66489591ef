"""The pool's side of Celery: a request is accepted once, whatever becomes of its sequence, and then it ends."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state

from workers.pool import EnginePool


class Request:
    """As much of a Celery request as a pool knows."""

    task_name = "chat.generate"

    def __init__(self, heard: list[str]) -> None:
        self.heard = heard

    def on_accepted(self, pid: int, started: float) -> None:
        self.heard.append("accepted")

    def on_success(self, outcome: Any) -> None:
        self.heard.append("ended")


def serve(begin: Callable[[EnginePool, list[str]], None]) -> list[str]:
    """Let a pool take one request, then run what it left to the hub; return what Celery heard."""
    heard: list[str] = []
    later: list[Callable[[], None]] = []
    pool = EnginePool.__new__(EnginePool)
    request = Request(heard)
    claim: Any = SimpleNamespace(request=SimpleNamespace(generation_id="g"), lease=SimpleNamespace(run=1))
    pool.jobs = {}
    pool.hub = SimpleNamespace(call_soon=lambda call, *args: later.append(lambda: call(*args)))
    pool.app = SimpleNamespace(tasks={"chat.generate": SimpleNamespace(outcome="")})
    pool.runtime = SimpleNamespace(begin=lambda claim: begin(pool, heard))  # type: ignore[assignment]
    trace = lambda *args: (0, "", 0.0)  # noqa: E731
    pool.begin(claim)
    pool.on_apply(trace, ("chat.generate", "g"), {}, callback=request.on_success, accept_callback=request.on_accepted)
    assert set(pool.jobs) == {"g"}
    for call in later:
        call()
    return heard


def test_a_sequence_begins_before_celery_is_told() -> None:
    assert serve(lambda pool, heard: heard.append("begun")) == ["begun", "accepted"]


def test_what_ends_at_once_was_accepted_before() -> None:
    def reject(pool: EnginePool, heard: list[str]) -> None:
        pool._ended("g", 1, "failed")

    assert serve(reject) == ["accepted", "ended"]


def test_what_cannot_begin_ends_too(caplog: pytest.LogCaptureFixture) -> None:
    def fail(pool: EnginePool, heard: list[str]) -> None:
        raise RuntimeError("broken")

    assert serve(fail) == ["accepted", "ended"]
    assert "left to its lease" in caplog.text


def test_a_place_is_free_again_though_celery_never_took_the_request() -> None:
    heard: list[str] = []
    pool = EnginePool.__new__(EnginePool)
    claim: Any = SimpleNamespace(request=SimpleNamespace(generation_id="g"), lease=SimpleNamespace(run=1))
    pool.jobs = {}
    pool.runtime = SimpleNamespace(begin=lambda claim: heard.append("begun"))  # type: ignore[assignment]
    pool.begin(claim)
    pool._finish("g", 1, "stop")
    assert (heard, pool.jobs) == (["begun"], {})


def test_a_request_that_comes_after_the_end_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    pool, request = EnginePool.__new__(EnginePool), Request(heard)
    pool.jobs = {}
    monkeypatch.setattr(state, "task_ready", lambda request: heard.append("let go"))
    trace = lambda *args: (0, "", 0.0)  # noqa: E731
    late = pool.on_apply(
        trace, ("chat.generate", "g"), {}, callback=request.on_success, accept_callback=request.on_accepted
    )
    assert (late, heard) == (None, ["let go"])
