"""The processes a message passes through: web, a worker with the fake engine, records; with a database of their own.

Lighter than the whole service: no supervisor, no Flower. The cast is Alice and Bob, signed in already.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import die_with_parent, free_port

ROOT = Path(__file__).resolve().parent.parent.parent
_START_S = 60
_DATABASE = "chat.sqlite3"

_CAST = """
import json, django
django.setup()
from importlib import import_module
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from chatproject.accounts import keys
from chatproject.accounts.models import Plan, User
from chatproject.chat import tickets
from django.core.management import call_command
call_command("migrate", verbosity=0)
plan, _ = Plan.objects.get_or_create(name="test")
cast = {}
for name in ("alice", "bob", "charlie"):
    user = User.objects.create_user(name, password="pass phrase of " + name, plan=plan)
    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session.update({
        SESSION_KEY: str(user.pk), HASH_SESSION_KEY: user.get_session_auth_hash(),
        BACKEND_SESSION_KEY: "django.contrib.auth.backends.ModelBackend",
    })
    session.create()
    _, key = keys.create(user=user, name="test")
    cast[name] = {"id": str(user.pk), "session": session.session_key, "key": key, "ticket": tickets.make(user)}
print(json.dumps(cast))
"""


@dataclass
class Person:
    """One of the cast, with what proves who they are."""

    id: str
    session: str
    key: str
    ticket: str


@dataclass
class Stack:
    """The running processes."""

    port: int
    directory: Path  # of the database and the logs
    cast: dict[str, Person]
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/chat/"

    @property
    def database(self) -> Path:
        return self.directory / _DATABASE

    def python(self, script: str) -> str:
        """Run a script on the Django side; return what it printed."""
        return _run([sys.executable, "-c", f"import django; django.setup()\n{script}"], self.environment)

    def memory_bytes(self, name: str) -> int:
        """Return what a process holds of memory now."""
        pages = int(Path(f"/proc/{self.processes[name].pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """Run one statement on the service's own database."""
        with closing(sqlite3.connect(self.database, timeout=20)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def start(self, name: str, **environment: str) -> None:
        """Start a process: web, worker or records."""
        celery = [sys.executable, "-m", "celery", "-A"]
        endpoint = f"tcp:port={self.port}:interface=127.0.0.1:backlog=512"
        command = {
            "web": [
                sys.executable, "-m", "daphne", "-e", endpoint, "--websocket-max-message-size", "262144",
                "--websocket-max-frame-size", "262144", "chatproject.asgi:application",
            ],
            "worker": [*celery, "workers.app", "worker", "--pool=custom", "-c", "32", "-n", f"w{self.port}@%h"],
            "records": [
                *celery, "chatproject.celery", "worker", "-Q", "records", "--pool=threads", "-c", "2",
                "-n", f"r{self.port}@%h",
            ],
        }[name]  # fmt: skip
        extra = {"CELERY_CUSTOM_WORKER_POOL": "workers.pool:EnginePool"} if name == "worker" else {}
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                env={**self.environment, **extra, **environment}, preexec_fn=die_with_parent,
            )  # fmt: skip

    def wait_for_web(self) -> None:
        """Wait until the web process answers."""
        deadline = time.monotonic() + _START_S
        while True:
            try:
                urllib.request.urlopen(f"{self.origin}/accounts/login/", timeout=2).close()
                return
            except OSError:
                if self.processes["web"].poll() is not None or time.monotonic() > deadline:
                    log = (self.directory / "web.log").read_text()
                    raise RuntimeError(f"the web process: {log[-3000:]}") from None
                time.sleep(0.05)

    def stop(self, name: str) -> int:
        """Stop a process as the supervisor does; return its exit status."""
        process = self.processes[name]
        process.terminate()
        try:
            return process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


@contextmanager
def running(directory: Path, redis_url: str, *, with_worker: bool = True, **environment: str) -> Iterator[Stack]:
    """Start the processes; yield when the web process answers."""
    port = free_port()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("CHAT_", "DATABASE_"))},
        "DJANGO_SETTINGS_MODULE": "chatproject.settings", "DATABASE_URL": f"sqlite:///{directory / _DATABASE}",
        "REDIS_URL": redis_url, "PORT": str(port), "SECRET_KEY": "k" * 50, "PYTHONUNBUFFERED": "1",
        "CHAT_ENGINE": "fake", "CHAT_FAKE_STEP_MS": "5", **environment,
    }  # fmt: skip
    people = json.loads(_run([sys.executable, "-c", _CAST], env).splitlines()[-1])
    stack = Stack(
        port=port, directory=directory, cast={name: Person(**fields) for name, fields in people.items()},
        environment=env,
    )  # fmt: skip
    with ExitStack() as stopping:
        for name in ("web", "worker", "records") if with_worker else ("web",):
            stack.start(name)
            stopping.callback(stack.stop, name)
        stack.wait_for_web()
        yield stack


def _run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command} failed: {done.stderr[-2000:]}")
    return done.stdout
