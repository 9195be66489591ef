"""The worker's door: opens the queues it can serve, rings for those that wait, makes room, and drains at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import celery.worker.consumer
from celery import bootsteps
from celery.worker import state
from kombu.exceptions import OperationalError

from chatproject.contract import broker, names
from chatproject.contract.fairness import candidates
from chatproject.contract.names import PRIORITY
from workers import tickets
from workers.store import AWAY

log = logging.getLogger(__name__)
LOOK_S: Final = 0.1
ROOM_S: Final = 0.02  # a look costs one EXISTS; a VIP's first token waits for it when all are full
RING_S: Final = 1.0
CHARGE_S: Final = 0.5
EVENTS_S: Final = 0.5  # Flower shows them so much later
SETTLE_S: Final = 4.0
BROKER_AWAY: Final = (*AWAY, OperationalError)


class Consumer(celery.worker.consumer.Consumer):
    """Celery's consumer, but it comes back within a second of Redis instead of after 2, 4, ... 30 s."""

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, and say so while it takes."""

        def say(error: Exception, interval_s: float) -> None:
            log.error("no broker, again in %.1f s: %r", interval_s, error)

        return conn.ensure_connection(say, callback=state.maybe_shutdown, **broker.RECONNECT)


class Doorman(bootsteps.StartStopStep):
    """Owned by Celery's main thread."""

    # Control and Heart too, so that this step is stopped before them: revoke, ping and events live through the drain.
    requires = tuple("celery.worker.consumer." + step for step in ("tasks:Tasks", "control:Control", "heart:Heart"))

    def start(self, c: Any) -> None:
        """Make room every 20 ms, look every 100, tell events and charge every half second, ring every second."""
        self.is_draining = False
        self.timers = [
            c.timer.call_repeatedly(LOOK_S, self._guarded, (self._look, c)),
            c.timer.call_repeatedly(ROOM_S, self._guarded, (self._make_room, c)),
            c.timer.call_repeatedly(RING_S, self._guarded, (self._ring, c)),
            c.timer.call_repeatedly(CHARGE_S, self._guarded, (self._charge, c)),
            c.timer.call_repeatedly(EVENTS_S, self._guarded, (self._tell_events, c)),
        ]
        c.event_dispatcher.on_send_buffered = None  # one message for each event takes longer than the rest of a ticket

    def stop(self, c: Any) -> None:
        """Drain at shutdown; after a lost connection there is nothing to do."""
        self.is_draining = c.blueprint.state == bootsteps.CLOSE
        if self.is_draining:
            self._drain(c)
        for timer in self.timers:
            timer.cancel()

    def _tell_events(self, c: Any) -> None:
        c.event_dispatcher.flush()

    def _guarded(self, do: Callable[[Any], None], c: Any) -> None:
        try:
            do(c)
        except BROKER_AWAY as error:
            log.warning("%s: %r", do.__name__, error)

    def _look(self, c: Any) -> None:
        if self.is_draining:
            return
        wanted = {names.generate_queue(model) for model in c.pool.runtime.models}
        opened = {queue.name for queue in c.task_consumer.queues}
        for queue in wanted - opened:
            c.add_task_queue(queue, no_ack=True)
        for queue in opened - wanted:
            c.cancel_task_queue(queue)

    def _make_room(self, c: Any) -> None:
        """Hand back the newest of the lowest lane when someone waits in a higher one."""
        pool, runtime = c.pool, c.pool.runtime
        if pool.num_free > 0 or self.is_draining:
            return
        jobs = [job for job in pool.jobs.values() if not job.claim.is_guaranteed]
        if not jobs:
            return
        newest = max(jobs, key=lambda job: (PRIORITY[job.claim.request.lane], job.started))
        rank = PRIORITY[newest.claim.request.lane]
        if not runtime.store.waits_in(runtime.config.slug, [lane for lane in names.LANES if PRIORITY[lane] < rank]):
            return
        found = candidates(
            runtime.store.look(runtime.config.slug, num_users=2, num_ids=1), runtime.charges.expected_cost,
            takes_last=not pool.holds_last_attempt,
        )  # fmt: skip
        id_ = next((candidate.generation_id for candidate in found if PRIORITY[candidate.lane] < rank), None)
        # One worker makes room for one head: without this key each full worker hands one back for the same message.
        if id_ is not None and runtime.store.client.set(f"room:{id_}", runtime.config.slot, nx=True, px=1000):
            pool.room_is_for = id_
            pool.hand_back(newest, "someone in a higher lane waits")

    def _charge(self, c: Any) -> None:
        c.pool.runtime.charges.flush(c.pool.runtime.store)

    def _ring(self, c: Any) -> None:
        """Ring for those that wait without a ticket: a lost ticket costs a second."""
        runtime, free = c.pool.runtime, c.pool.num_free
        if free <= 0 or self.is_draining:
            return
        client = runtime.store.client
        for model in runtime.models:
            pipe = client.pipeline(transaction=False)
            for lane in names.LANES:
                pipe.zcard(names.wait_key(model, lane))
            for key in broker.redis_lists(names.generate_queue(model)):
                pipe.llen(key)
            counts = pipe.execute()
            waiting = [lane for lane, count in zip(names.LANES, counts, strict=False) for _ in range(min(count, free))]
            tickets_there = sum(counts[len(names.LANES) :])
            for lane in waiting[: max(0, min(free, len(waiting) - tickets_there))]:
                tickets.ring(c.app, runtime.config, lane)

    def _drain(self, c: Any) -> None:
        """Celery's loop has ended, all else still lives: close the door, turn the loop ourselves, hand back."""
        runtime = c.pool.runtime
        runtime.drain()
        for queue in [queue.name for queue in c.task_consumer.queues]:
            c.cancel_task_queue(queue)
        self._turn(c, until=lambda: not c.pool.jobs, for_s=runtime.config.grace_s)
        for job in list(c.pool.jobs.values()):
            c.pool.hand_back(job, "shutdown")
        # Ends are remembered here until they are stored; a hand-back must be written before its lease goes.
        self._turn(c, until=lambda: runtime.is_settled, for_s=SETTLE_S)
        c.event_dispatcher.flush()

    def _turn(self, c: Any, *, until: Callable[[], bool], for_s: float) -> None:
        deadline = time.monotonic() + for_s
        c.hub.timer.call_repeatedly(0.05, lambda: None)  # so that a turn never waits long
        while not until() and time.monotonic() < deadline:
            try:
                c.hub.run_once()
            except Exception as error:
                log.warning("drains without its broker: %r", error)
                # Heartbeats would retry for ever in this thread: SIGTERM then hangs until Redis is back.
                c.event_dispatcher.disable()
                c.hub.on_tick.clear()
                c.hub.reset()
                time.sleep(0.05)
