"""The service under test: `manage.py up` in a copy of the checkout, all real processes, and its database."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.chaos import disk
from tests.chaos.options import Options
from tests.chaos.proxy import ROLES, Proxy, serving
from tests.servers import PostgreSQL, postgresql
from tests.service import HOOKS, Service, running

WEBS, WORKERS, USERS = 2, 3, 4
_PLANTED = Path(__file__).parent / "planted"

_MAKE_USERS = """
from chatproject.accounts import keys
from chatproject.accounts.models import Plan, User
made = {}
for number in range(%d):
    user = User.objects.create(username=f"user{number}", plan=Plan.objects.get(name="unlimited"))
    made[str(user.pk)] = keys.create(user=user, name="chaos")[1]
print(json.dumps(made))
"""
_READ_ALL = """
from chatproject.accounts.models import DailyUse, Reservation, UsageRecord
from chatproject.chat.models import Message
from chatproject.generations.models import Generation
print(json.dumps({
    "rows": [
        {"id": str(row.id), "user": str(row.user_id), "client_id": row.client_id, "status": row.status,
         "answer": row.answer, "code": row.code, "sha256": row.sha256, "thread": str(row.thread),
         "completion_tokens": row.completion_tokens, "reason": row.reason, "deaths": row.deaths}
        for row in Generation.objects.defer("request")
    ],
    "charged": [str(id_) for id_ in UsageRecord.objects.values_list("generation_id", flat=True)],
    "held": [str(id_) for id_ in Reservation.objects.values_list("generation_id", flat=True)],
    "said": list(Message.objects.filter(role="user").values_list("text", flat=True)),
    "reserved": Reservation.objects.count() + sum(use.tokens_reserved for use in DailyUse.objects.all()),
}))
"""


@dataclass
class Cluster:
    """A running service."""

    service: Service
    users: dict[str, str]  # id: key
    proxy: Proxy
    database: PostgreSQL | None  # None: SQLite

    @property
    def urls(self) -> list[str]:
        """Every web process's own; there is no balancer before them."""
        host, _, port = self.service.url.rpartition(":")
        return [f"{host}:{int(port.rstrip('/')) + index}" for index in range(WEBS)]

    def url_of(self, pid: int) -> str:
        """Return the address that a web process serves; empty when it is gone."""
        try:
            port = re.search(rb"tcp:port=(\d+)", Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            return ""
        return f"{self.service.url.rpartition(':')[0]}:{int(port[1])}" if port else ""

    def pids(self, role: str) -> list[int]:
        """Return the processes of a role now."""
        found: list[int] = self.service.state["processes"][role]
        return found

    def redis(self, timeout_s: float = 1.0) -> redis.Redis:
        """Return a client of one's own: the nemesis breaks connections."""
        return redis.Redis.from_url(self.service.state["redis"], decode_responses=True, socket_timeout=timeout_s)

    def read_all(self) -> dict[str, Any]:
        """Return what the database holds: rows, charged, held, said, reserved."""
        found: dict[str, Any] = self.read(_READ_ALL)
        return found

    def read(self, script: str) -> Any:
        """Run a script on the Django side, past the proxy; return the JSON that it printed."""
        return json.loads(self.service.python(script))


@contextmanager
def cluster(options: Options, directory: Path, **more: str) -> Iterator[Cluster]:
    """Start everything, with ``more`` in its environment; yield when it is ready."""
    with ExitStack() as stack:
        proxy = stack.enter_context(serving(directory))
        if disk.is_possible() and not options.scenario:
            stack.enter_context(disk.small(directory / "checkout" / "var"))
        environment = {
            "CHAT_ENGINE": options.engine, "CHAT_FAKE_STEP_MS": "20", "WEBS": str(WEBS), "WORKERS": str(WORKERS),
            "PORT": str(_free_ports(WEBS)), "PYTHONPATH": f"{HOOKS}:{_PLANTED}", "CHAOS_CONTROL": str(proxy.control),
        }  # fmt: skip
        database = stack.enter_context(postgresql(outlives_kills=True)) if options.database == "postgres" else None
        if database is not None:
            environment["DATABASE_URL"] = database.url
        if options.redis == "memory":
            environment["CHAOS_REDIS"] = "memory"
        if options.mixed:
            environment["CHAOS_MIXED"] = "1"
        if options.clocks == "all":
            environment["CHAOS_CLOCKS"] = ",".join(ROLES)
        if options.defect:
            environment["CHAOS_DEFECT"] = options.defect
        service = stack.enter_context(running(directory, **environment | more))
        users = json.loads(service.python(_MAKE_USERS % USERS))
        found = Cluster(service=service, users=users, proxy=proxy, database=database)
        for url in found.urls:  # A web process connects when it is asked for something.
            urllib.request.urlopen(f"{url}/readyz", timeout=30).close()
        if missing := set(ROLES) - proxy.roles():
            raise RuntimeError(f"no connection of {', '.join(sorted(missing))} goes through the proxy")
        yield found


def _free_ports(num: int) -> int:
    """Return the first of some that follow each other, below those that the system gives to outgoing connections."""
    while True:
        first = random.SystemRandom().randrange(20_000, 30_000)
        with ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + num):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
