"""What chaos changes in the service's own processes: product code knows nothing of it.

Python imports a module of this name at its start when its directory is on PYTHONPATH; `tests.chaos.cluster` puts it
there. In every run connections are led through the proxy, and the clocks of the roles in ``CHAOS_CLOCKS`` are wrong;
``--defect`` plants a defect as well, which waits until the module it spoils has been imported.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

try:
    import clocks  # type: ignore[import-not-found]
    import links  # type: ignore[import-not-found]
    import tickets  # type: ignore[import-not-found]
    import versions  # type: ignore[import-not-found]
    from after_import import change  # type: ignore[import-not-found]
    from worker_defects import WORKER_DEFECTS  # type: ignore[import-not-found]
except ImportError:  # read for its table, not started with the service
    from tests.chaos.planted import clocks, links, tickets, versions
    from tests.chaos.planted.worker_defects import WORKER_DEFECTS
    from tests.hooks.after_import import change

Spoil = Callable[[ModuleType], None]


def _no_sweep(module: ModuleType) -> None:
    module.Sweeper._bring_back = lambda self, row: None


def _no_top_up_of_sweeper(module: ModuleType) -> None:
    module._ring_for_waiting = lambda models: None


def _no_top_up_of_worker(module: ModuleType) -> None:
    module.Doorman._ring = lambda self, c: None


def _no_gap_check(module: ModuleType) -> None:
    def offer(self: Any, frame: Any) -> Any:
        self._pass(frame)
        return module.Verdict.SHOW

    module.Cursor.offer = offer


def _drop_a_message_in_ten(module: ModuleType) -> None:
    """What the channel layer may do at any time; a reader without a gap check shows it."""
    take, count = module.Hub._take, [0]

    def lossy(self: Any, message: Any) -> None:
        count[0] += 1
        if count[0] % 10:
            take(self, message)

    module.Hub._take = lossy


def _channel_layer_alone(module: ModuleType) -> None:
    """The answer comes over the channel layer, and nobody reads the log."""
    _drop_a_message_in_ten(module)
    module.Hub._ask_log = lambda self, stream: None


def _settle_outside(module: ModuleType) -> None:
    import threading

    settle = module.quotas.settle

    def later(**fields: Any) -> bool:
        threading.Timer(6.0, settle, kwargs=fields).start()
        return True

    from types import SimpleNamespace

    module.quotas = SimpleNamespace(settle=later)


def _finished_before_the_commit(module: ModuleType) -> None:
    """The worker shows its own end."""
    frame = module.ActiveGeneration._frame

    def show_all(self: Any, new: Any) -> None:
        frame(self, new)
        if new.kind == "end" and new not in self.unsent:
            self.unsent.append(new)

    module.ActiveGeneration._frame = show_all


def _records_slow(module: ModuleType) -> None:
    """Time enough for a question between the frame and the commit; harmless by itself."""
    import time

    store = module.store

    def slow(generation_id: str) -> Any:
        time.sleep(0.3)
        return store(generation_id)

    module.store = slow


def _no_idempotency(module: ModuleType) -> None:
    import uuid
    from dataclasses import replace

    accept_new = module.accept_new  # what both ways in come through

    def accept_anew(draft: Any) -> Any:
        return accept_new(replace(draft, client_id=str(uuid.uuid4()), thread=uuid.uuid4()))

    module.accept_new = accept_anew


def _two_at_once(module: ModuleType) -> None:
    """The database does not forbid a second answer under way in one conversation."""
    accept_new = module.accept_new

    def accept(draft: Any) -> Any:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("DROP INDEX IF EXISTS one_live_generation_per_thread")
        return accept_new(draft)

    module.accept_new = accept


# Defect: what it spoils, the faults that bring it to light, and the invariants of which one must break.
DEFECTS: dict[str, tuple[dict[str, Spoil], tuple[str, ...], tuple[str, ...]]] = {
    "no_sweep": ({"chatproject.generations.sweeper": _no_sweep}, ("kill_worker",), ("lost",)),
    "no_top_up": (
        {"chatproject.generations.sweeper": _no_top_up_of_sweeper, "workers.bootsteps": _no_top_up_of_worker},
        ("drop_tickets",), ("lost", "ticket lost: starts within 3 s"),
    ),
    "no_gap_check": (
        {"chatproject.generations.streaming.cursor": _no_gap_check,
         "chatproject.generations.streaming.hub": _drop_a_message_in_ten},
        ("kill_web",), ("gap",),
    ),
    "channel_layer_alone": (
        {"chatproject.generations.streaming.hub": _channel_layer_alone}, ("kill_web",), ("silent", "lost"),
    ),
    "settle_outside_the_transaction": (
        {"chatproject.generations.records": _settle_outside}, ("kill_records",), ("charged once",),
    ),
    "finished_before_the_commit": (
        {"workers.generation": _finished_before_the_commit, "chatproject.generations.records": _records_slow},
        ("kill_web",), ("early",),
    ),
    "no_idempotency": (
        {"chatproject.generations.admission": _no_idempotency}, ("kill_web",), ("one row per message", "lost"),
    ),
    "two_at_once": (
        {"chatproject.generations.admission": _two_at_once}, ("kill_web",), ("one live answer per conversation",),
    ),
    **WORKER_DEFECTS,
}  # fmt: skip


def _no_log_file(module: ModuleType) -> None:
    configuration = module._configuration
    module._configuration = lambda *of: configuration(*of).replace("appendonly yes", "appendonly no")


def _start() -> None:
    control = os.environ["CHAOS_CONTROL"]
    changes = links.changes(control)
    changes["kombu.transport.redis"] = functools.partial(tickets.unreliable, control=control)
    changes["chatproject.generations.scripts"] = functools.partial(tickets.unreliable_accepts, control=control)
    if os.environ.get("CHAOS_REDIS") == "memory":
        changes["chatproject.ops.up.redis_server"] = _no_log_file
    role = links.role_of(sys.orig_argv)
    if role in os.environ.get("CHAOS_CLOCKS", "worker").split(","):
        changes |= clocks.set_wrong()
    if role == "worker" and os.environ.get("CHAOS_MIXED"):
        changes |= versions.CHANGES
    if defect := os.environ.get("CHAOS_DEFECT"):
        changes |= DEFECTS[defect][0]  # of other modules than those of the links
    change(changes)


if "CHAOS_CONTROL" in os.environ:
    try:
        _start()
    except BaseException:
        # Python goes on after an exception here, and a run in which nothing was changed would look like a good one.
        traceback.print_exc()
        os._exit(70)
