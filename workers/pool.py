"""A Celery pool that is an engine: a request becomes a sequence, and Celery's own tracer runs when it has ended.

No thread per task; events, states, revoke and time stay Celery's. The *main thread* (kombu's hub) owns jobs, claims and
every call into Celery; other threads reach it by `hub.call_soon`, which is thread-safe and wakes it (kombu 5.7).
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from celery.concurrency.base import BasePool
from celery.worker import state

from chatproject.contract.fairness import MAX_ATTEMPTS
from workers import config as worker_config
from workers.runtime import Runtime
from workers.store import Claim

log = logging.getLogger(__name__)


class Job:
    """A generation in the engine. It holds the place until `EnginePool._finish`; Celery's request comes later."""

    def __init__(self, pool: EnginePool, claim: Claim) -> None:
        self.pool, self.claim = pool, claim
        self.id, self.run, self.started = claim.request.generation_id, claim.lease.run, time.monotonic()
        self.trace: Any = None
        self.args: Any = ()
        self.request: Any = None

    def terminate(self, signal: Any = None) -> None:
        """Celery calls this for revoke(terminate=True), and for every job at a cold shutdown."""
        if self.id in state.revoked:
            self.pool.runtime.cancel(self.id, self.run)
        else:
            self.pool.hand_back(self, "shutdown")


class EnginePool(BasePool):
    """Gives requests to the engine. Owned by Celery's main thread."""

    body_can_be_buffer = True
    signal_safe = True
    hub: Any = None

    def on_start(self) -> None:
        """Start the runtime; tickets are only consumed once it has a model."""
        self.jobs: dict[str, Job] = {}
        self.room_is_for: str | None = None  # the generation that a place was made for
        self.runtime = Runtime(worker_config.read(), send_task=self._send_task)
        self.runtime.ended = self._ended
        self.runtime.start()

    def register_with_event_loop(self, hub: Any) -> None:
        """Keep the hub: the way back from other threads."""
        self.hub = hub

    def on_stop(self) -> None:
        """Hand back what still runs, write what is left, stop the threads."""
        for job in list(self.jobs.values()):
            self.hand_back(job, "shutdown")
        self.runtime.stop()

    def terminate_job(self, pid: Any, signal: Any = None) -> None:
        """Do nothing: Celery calls Job.terminate next."""

    def begin(self, claim: Claim) -> None:
        """Begin a sequence. Celery is told next: what it makes of a request would keep the first token waiting."""
        job = self.jobs[claim.request.generation_id] = Job(self, claim)
        try:
            self.runtime.begin(claim)
        except Exception:  # raised on, it would end the worker
            log.exception("generation %s is left to its lease", job.id)
            self._ended(job.id, job.run, "failed")

    def on_apply(self, trace: Any, args: Any, kwargs: Any, callback: Any, accept_callback: Any, **_: Any) -> Job | None:
        """Take the request of a sequence that has begun."""
        job = self.jobs.get(args[1])
        if job is None:  # it came late, as with a rate limit, and the sequence has ended
            state.task_ready(callback.__self__)
            return None
        job.trace, job.args, job.request = trace, args, callback.__self__
        accept_callback(os.getpid(), job.started)
        return job  # Celery keeps only a weak reference

    def hand_back(self, job: Job, why: str) -> None:
        """End the task as RETRY before others may claim its generation: an id is never twice in one worker."""
        self._finish(job.id, job.run, f"handed back: {why}")
        self.runtime.hand_back(job.id, job.run)

    @property
    def num_free(self) -> int:
        """Places that no job holds."""
        return int(self.limit) - len(self.jobs)

    @property
    def holds_last_attempt(self) -> bool:
        """Whether a generation here is on its last attempt: a second one would share its fate."""
        return any(job.claim.request.attempt >= MAX_ATTEMPTS for job in self.jobs.values())

    def _ended(self, generation_id: str, run: int, outcome: str) -> None:
        if self.hub is not None:
            self.hub.call_soon(self._finish, generation_id, run, outcome)

    def _finish(self, generation_id: str, run: int, outcome: str) -> None:
        job = self.jobs.get(generation_id)
        if job is None or job.run != run:
            return  # handed back a moment ago
        del self.jobs[generation_id]
        if job.request is None:
            log.warning("generation %s has ended, and Celery never took its request", generation_id)
            return
        task = self.app.tasks[job.request.task_name]
        task.outcome = "revoked" if generation_id in state.revoked else outcome
        try:
            failed, value, _ = job.trace(*job.args)
            job.request.on_success((failed, value, time.monotonic() - job.started))
        except Exception:  # call_soon has no net
            log.exception("finish %s", generation_id)
            state.task_ready(job.request)

    def _send_task(self, what: str, detail: str) -> None:
        from workers import tickets

        if what == "store":
            tickets.ask_to_store(self.app, detail)
        else:
            tickets.ring(self.app, self.runtime.config, detail)
