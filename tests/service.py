"""The whole service in a copy of this checkout, on free ports: what a user's `make run` starts, with no mock.

Each copy has its own var/, so tests disturb neither each other nor a service that runs from the checkout itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import free_port, stop_with_parent

ROOT = Path(__file__).resolve().parent.parent
HOOKS = ROOT / "tests" / "hooks"  # what chaos and the benchmarks put on PYTHONPATH to change modules of the service
PASSWORD = "correct horse battery staple"  # of demo and admin
_OURS = ("HOST", "PORT", "WEBS", "WORKERS", "DATABASE_URL", "REDIS_URL", "SECRET_KEY", "ALLOWED_HOSTS", "SIGNUP", "CI")


@dataclass
class Service:
    """A running `up`."""

    root: Path  # of the copy
    process: subprocess.Popen[bytes]

    @property
    def state(self) -> dict[str, Any]:
        """What var/up.json says now: url, flower, redis, database, processes."""
        state: dict[str, Any] = json.loads((self.root / "var" / "up.json").read_text())
        return state

    @property
    def url(self) -> str:
        url: str = self.state["url"]
        return url

    @property
    def output(self) -> str:
        """Everything it printed so far."""
        return (self.root / "up.out").read_text(errors="replace")

    def python(self, script: str) -> str:
        """Run a script on the Django side; return the last line that it printed."""
        state = self.state
        done = subprocess.run(
            [sys.executable, "-c", f"import json, django\ndjango.setup()\n{script}"], cwd=self.root, text=True,
            capture_output=True, timeout=300, check=False,
            env={
                "PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "chatproject.settings",
                "REDIS_URL": state["redis"], "DATABASE_URL": state["database"],
            },
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-2000:])
        return done.stdout.splitlines()[-1]

    def wait_ready(self, timeout_s: float = 110) -> None:
        """Wait for var/up.json, which is written when everything is ready."""
        deadline = time.monotonic() + timeout_s
        while not (self.root / "var" / "up.json").exists():
            if self.process.poll() is not None:
                raise RuntimeError(f"`up` ended with status {self.process.returncode}:\n{self.output}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"`up` was not ready after {timeout_s:.0f} s:\n{self.output}")
            time.sleep(0.05)

    def stop(self, timeout_s: float = 60) -> int:
        """Stop it as Ctrl-C does; return its exit status."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout_s)


def copy_checkout(directory: Path) -> Path:
    """Copy what git would commit of the working tree; the environment is shared by a link."""
    root = directory / "checkout"
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    (root / ".venv").symlink_to(Path(sys.prefix))
    return root


def start(root: Path, **environment: str) -> Service:
    """Start `make run` (or, in an environment make did not install, `manage.py up`) in a copy of the checkout."""
    port = free_port()
    mine = {"PORT": str(port), "FLOWER_PORT": str(free_port()), "CHAT_DEMO_PASSWORD": PASSWORD}
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _OURS and not name.startswith(("CHAT_", "MAKE"))
    }
    stamps = [Path(sys.prefix) / f"installed-{name}" for name in ("dev", "run")]
    is_ours = any(stamp.exists() for stamp in stamps)
    command = ["make", "--no-print-directory", "run"] if is_ours else [sys.executable, "manage.py", "up"]
    with (root / "up.out").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=root, env={**inherited, **mine, **environment}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, preexec_fn=stop_with_parent,
        )  # fmt: skip
    return Service(root=root, process=process)


@contextmanager
def running(directory: Path, **environment: str) -> Iterator[Service]:
    """Run the service until the block ends; yields when everything is ready."""
    service = start(copy_checkout(directory), **environment)
    try:
        service.wait_ready()
        yield service
    finally:
        try:
            service.stop()
        except subprocess.TimeoutExpired:
            os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait()
