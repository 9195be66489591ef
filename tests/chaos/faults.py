"""Every fault that the nemesis can choose, and what each may cost a user.

A fault that loses data of Redis is named in `LOSES_DATA`: only then, and only for generations whose worker died as
well, may a reader's text be replaced.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from tests.chaos import processes, surroundings
from tests.chaos.cluster import Cluster

Fault = Callable[[Cluster, random.Random], Awaitable[processes.Hit]]

FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        processes.kill_worker, processes.term_worker, processes.stop_worker, processes.kill_web, processes.term_web,
        processes.stop_web, processes.kill_records, processes.term_records, processes.stop_records,
        processes.drop_tickets, processes.repeat_tickets, surroundings.kill_redis, surroundings.stop_redis,
        surroundings.pause_redis, surroundings.flush_redis, surroundings.fill_redis, surroundings.refuse_writes,
        surroundings.fill_disk, surroundings.crash_database, surroundings.restart_database, surroundings.stop_database,
        surroundings.cut_links, surroundings.hold_links, surroundings.delay_links, surroundings.throttle_links,
    )
}  # fmt: skip
NEEDS_POSTGRESQL = frozenset({"crash_database", "restart_database", "stop_database"})
NEEDS_ROOT = frozenset({"fill_disk"})
LOSES_DATA = frozenset({"kill_redis", "flush_redis"})
# Those after which others may hold a worker for dead; what it ran is in the hit.
KILLS_WORKERS = frozenset({
    "kill_worker", "term_worker", "stop_worker", "hold_links", "fill_redis", "refuse_writes", "fill_disk",
})  # fmt: skip

# Those during which no frame can reach anybody. A killed web process is none: its readers come back at once.
SILENCES = frozenset({
    "hold_links", "stop_redis", "pause_redis", "kill_redis", "flush_redis", "fill_redis", "refuse_writes", "fill_disk",
    "crash_database", "restart_database", "stop_database", "stop_records", "throttle_links",
})  # fmt: skip
# The same for those alone who are connected to the process at the hit's url.
SILENCES_ONE = frozenset({"stop_web"})
# The next faults come meanwhile: it is long, and touches one process of several.
BESIDE_OTHERS = frozenset({"stop_web"})
