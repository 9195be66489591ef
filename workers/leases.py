"""Keep this worker's leases and its word about itself alive: one pipeline per second, apart from the engine's thread.

A step that takes long must not cost a lease. What hangs must not keep one: the engine has a watchdog of its own, the
publisher is watched here, and either ends the process. The status carries the engine's step counter.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from chatproject.contract import names
from chatproject.contract.messages import ModelStatus, WorkerStatus
from workers.errors import FatalEngineError
from workers.publisher import Publisher
from workers.store import AWAY, Store

log = logging.getLogger(__name__)
PERIOD_S: Final = 1.0
AGAIN_S: Final = 0.1  # after a failure: others claim what has no lease soon after Redis is back
HANG_S: Final = 60.0  # of the publisher, whose turns take seconds when Redis answers late
PRUNE_EVERY: Final = 60  # renewals


class Leases:
    """Owns one daemon thread."""

    def __init__(
        self,
        *,
        store: Store,
        publisher: Publisher,
        worker_status: Callable[[], WorkerStatus],
        model_status: Callable[[], ModelStatus | None],
        on_fatal: Callable[[BaseException], None],
        hang_s: float = HANG_S,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._worker_status = worker_status
        self._model_status = model_status
        self._on_fatal, self._hang_s = on_fatal, hang_s
        self._is_served_since: float | None = None  # with generations, without a break
        self._renewals = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and the status with it: a worker that left is not waited for."""
        self._stopped.set()
        self._thread.join(2 * PERIOD_S)
        try:
            slot = self._worker_status().slot
            pipe = self._store.client.pipeline(transaction=False)
            pipe.delete(names.worker_key(slot))
            pipe.srem(names.WORKERS_KEY, slot)
            pipe.execute()
        except AWAY as error:
            log.warning("the status of this worker goes with its expiry: %r", error)

    def _run(self) -> None:
        is_away = False
        while True:
            began, period_s = time.monotonic(), PERIOD_S
            try:
                self.renew()
                is_away = False
            except AWAY as error:
                if not is_away:
                    log.warning("leases: Redis is away: %r", error)
                is_away, period_s = True, AGAIN_S
            except Exception:
                log.exception("leases")
            if self._stopped.wait(max(0.05, period_s - (time.monotonic() - began))):
                return

    def renew(self) -> None:
        """Renew once, and say how the worker is. Raises one of AWAY."""
        leases, asked_at = self._publisher.leases(), time.monotonic()
        self._watch(bool(leases), asked_at)
        answers = self._store.renew(leases)
        if answers:
            said = ((id_, lease.run, answer) for (id_, lease), answer in zip(leases, answers, strict=True))
            self._publisher.on_renewals(said, asked_at=asked_at)
        worker, model = self._worker_status(), self._model_status()
        pipe = self._store.client.pipeline(transaction=False)
        pipe.set(names.worker_key(worker.slot), worker.to_json(), px=names.WORKER_MS)
        pipe.sadd(names.WORKERS_KEY, worker.slot)
        pipe.pexpire(names.WORKERS_KEY, names.WORKERS_MS)
        if model is not None:
            pipe.set(names.model_key(model.model), model.to_json(), px=names.MODEL_MS)
        pipe.execute()
        if self._renewals % PRUNE_EVERY == 0:
            self._prune()
        self._renewals += 1

    def _watch(self, has_leases: bool, now: float) -> None:
        """End the process whose publisher hangs: nobody sees its tokens, and nobody else may go on."""
        if not has_leases:
            self._is_served_since = None
            return
        self._is_served_since = self._is_served_since or now
        if min(self._publisher.stood_still_s(), now - self._is_served_since) > self._hang_s:
            self._on_fatal(FatalEngineError(f"Nothing was published for more than {self._hang_s:g} s."))

    def _prune(self) -> None:
        """Take slots that are gone off the list. One that was only slow puts itself back within a second."""
        client = self._store.client
        slots: Any = client.smembers(names.WORKERS_KEY)
        said: Any = client.mget([names.worker_key(slot) for slot in slots])
        gone = [slot for slot, status in zip(slots, said, strict=True) if status is None]
        if gone:
            client.srem(names.WORKERS_KEY, *gone)
