"""The three services that are measured, all real processes: ours as `make run` starts it, and the two peers.

Each runs the same stamped fake engine (`stamped/`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import redis

from tests.bench.streaming.clients import EventReader, Reader, SocketReader, our_message, plain_message
from tests.servers import die_with_parent, free_port, postgresql_server, redis_server, stopping, wait_until
from tests.service import HOOKS, ROOT, running

_STAMPED: Final = f"{HOOKS}:{Path(__file__).parent / 'stamped'}"
_MAKE_USERS: Final = """
from chatproject.accounts import keys
from chatproject.accounts.models import Plan, User
plan = Plan.objects.get(name="unlimited")
users = [User.objects.create(username=f"user{number}", plan=plan) for number in range(%d)]
print(json.dumps([keys.create(user=user, name="bench")[1] for user in users]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A running service."""

    name: str
    connect: Callable[[int], Awaitable[Reader]]  # the reader of a number
    roots: tuple[psutil.Process, ...]  # of its processes
    web: psutil.Process

    def cpu_s(self) -> float:
        """Return the processor seconds that all its living processes have used."""
        total = 0.0
        for root in self.roots:
            for process in (root, *root.children(recursive=True)):
                try:
                    times = process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                total += times.user + times.system
        return total


@contextmanager
def ours(directory: Path, *, step_ms: float, users: int, with_postgresql: bool = False) -> Iterator[Side]:
    """Everything `make run` starts, Flower too."""
    with ExitStack() as stack:
        environment = {
            "CHAT_ENGINE": "fake", "CHAT_FAKE_STEP_MS": str(step_ms), "CHAT_SLOTS": "1200", "CHAT_STEP_TOKENS": "8192",
            "PYTHONPATH": _STAMPED,
        }  # fmt: skip
        if with_postgresql:
            environment["DATABASE_URL"] = stack.enter_context(postgresql_server())
        service = stack.enter_context(running(directory, **environment))
        keys = json.loads(service.python(_MAKE_USERS % users))
        port = int(service.url.rstrip("/").rpartition(":")[2])
        roots = [psutil.Process(service.process.pid)]
        redis_pid = _redis_pid(service.state["redis"])
        if redis_pid not in {process.pid for process in roots[0].children(recursive=True)}:
            roots.append(psutil.Process(redis_pid))
        yield Side(
            name="PostgreSQL" if with_postgresql else "SQLite",
            connect=lambda number: SocketReader.connect(port, "/ws/chat/", keys[number % users], our_message),
            roots=tuple(roots),
            web=psutil.Process(service.state["processes"]["web"][0]),
        )


@contextmanager
def bare_sse(*, step_ms: float) -> Iterator[Side]:
    """FastAPI and the engine in one process."""
    port = free_port()
    with _process(
        [
            "uvicorn", "tests.bench.streaming.bare_sse:app", "--port", str(port), "--log-level", "warning",
            "--timeout-keep-alive", "3600",
        ],
        CHAT_FAKE_STEP_MS=str(step_ms),
    ) as process:  # fmt: skip
        wait_until(lambda: _answers(port), 60)
        root = psutil.Process(process.pid)
        yield Side(name="bare SSE", connect=lambda _: EventReader.connect(port), roots=(root,), web=root)


@contextmanager
def usual_recipe(*, step_ms: float) -> Iterator[Side]:
    """Channels with a group per socket."""
    with ExitStack() as stack:
        url, port = stack.enter_context(redis_server()), free_port()
        environment = {"CHAT_FAKE_STEP_MS": str(step_ms), "REDIS_URL": url}
        application = "tests.bench.streaming.usual_recipe:application"
        web = stack.enter_context(_process(["daphne", "-p", str(port), "-v", "0", application], **environment))
        worker = stack.enter_context(_process(["tests.bench.streaming.usual_recipe"], **environment))
        wait_until(lambda: _answers(port), 60)
        roots = tuple(psutil.Process(pid) for pid in (web.pid, worker.pid, _redis_pid(url)))
        yield Side(
            name="usual recipe",
            connect=lambda _: SocketReader.connect(port, "/", "", plain_message),
            roots=roots,
            web=roots[0],
        )


@contextmanager
def _process(module: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    if importlib.util.find_spec(module[0].partition(".")[0]) is None:
        raise ModuleNotFoundError(f"No module named {module[0]!r}", name=module[0])
    process = subprocess.Popen(
        [sys.executable, "-m", *module], cwd=ROOT, env={**os.environ, "PYTHONPATH": _STAMPED, **environment},
        preexec_fn=die_with_parent,
    )  # fmt: skip
    with stopping(process, signal.SIGTERM):
        yield process


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
    except OSError as error:
        return hasattr(error, "code")  # any answer will do
    return True


def _redis_pid(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        pid: int = client.info("server")["process_id"]
        return pid
