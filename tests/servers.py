"""Real servers for the tests: a Redis and a PostgreSQL, each in a directory of its own on a free loopback port.

Both die with the test run, even when it is killed. Nothing of Django is imported here.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_START_S = 60.0
_POSTGRESQL = ("initdb", "postgres", "pg_isready", "createdb")


def find_redis() -> str | None:
    """Return the Redis or Valkey server on PATH."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


def find_postgresql() -> Path | None:
    """Return the directory with ``initdb`` and ``postgres``: Debian keeps it off the PATH."""
    debian = Path("/usr/lib/postgresql")
    found = sorted(debian.glob("[0-9]*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        found.append(Path(on_path).resolve().parent)
    return next((path for path in found if all((path / name).exists() for name in _POSTGRESQL)), None)


def free_port() -> int:
    """Return a loopback port that was free a moment ago, and so was the one after it, for a second web process.

    Below those that the kernel gives to connections, which come and go all the time.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, socket.socket() as next_probe:
            try:
                probe.bind(("127.0.0.1", port))
                next_probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@contextmanager
def redis_server(*options: str, port: int | None = None) -> Iterator[str]:
    """Run a Redis server with nothing on disk; yield its URL."""
    binary = find_redis()
    assert binary is not None, "no redis-server: mark the test with needs('redis')"
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="chat-redis-") as directory:
        command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", directory, "--save", ""]
        process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)
        with stopping(process, signal.SIGTERM):
            _wait(process, lambda: _answers(port, b"PING\r\n", b"+PONG"), "redis-server")
            yield f"redis://127.0.0.1:{port}/0"


class PostgreSQL:
    """A cluster of its own that runs without fsync. Belongs to one thread that stays: it stops with the thread."""

    def __init__(self, url: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.url = url  # of its empty database
        self._start = start
        self.process = start()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it without waiting for clients: SIGINT tidily, SIGQUIT as in a crash."""
        self.process.send_signal(how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it and all its processes stand still: connections stay, the kernel takes new ones, nobody answers."""
        parent = psutil.Process(self.process.pid)
        parent.suspend()  # first: it makes no more children
        stopped = [parent]
        for process in parent.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.suspend()
                stopped.append(process)
        try:
            yield
        finally:
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def start(self) -> None:
        """Start it again, on the same port; it takes connections a moment later."""
        self.process = self._start()


@contextmanager
def postgresql_server(*, outlives_kills: bool = False) -> Iterator[str]:
    """Run `postgresql`; yield the URL of its empty database."""
    with postgresql(outlives_kills=outlives_kills) as server:
        yield server.url


@contextmanager
def postgresql(*, outlives_kills: bool = False) -> Iterator[PostgreSQL]:
    """Run a PostgreSQL cluster without fsync.

    ``outlives_kills``: a commit is in the kernel's hands before it is acknowledged, as it is by default; otherwise a
    killed server forgets what was committed in its last moment.
    """
    binaries = find_postgresql()
    assert binaries is not None, "no postgresql: mark the test with needs('postgresql')"
    # PostgreSQL refuses to run as root, and pytest's own tmp_path is closed to other users.
    user = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="chat-pg-", ignore_cleanup_errors=True) as directory:
        if user is not None:
            entry = pwd.getpwnam(user)
            os.chown(directory, entry.pw_uid, entry.pw_gid)
        data = f"{directory}/data"
        initdb = [str(binaries / "initdb"), "-D", data, "-U", "chat", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
        _check(initdb, directory, user)
        settings = {
            "listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": directory,
            "fsync": "off", "synchronous_commit": "on" if outlives_kills else "off", "full_page_writes": "off",
            "max_connections": "200",
        }  # fmt: skip
        command = [str(binaries / "postgres"), "-D", data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]

        def start() -> subprocess.Popen[bytes]:
            # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients.
            return subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=directory,
                preexec_fn=_as_user(user, signal.SIGINT),
            )  # fmt: skip

        server = PostgreSQL(f"postgres://chat@127.0.0.1:{port}/chat", start)
        try:
            ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "chat"]
            _wait(server.process, lambda: subprocess.run(ready, check=False).returncode == 0, "postgres")
            _check(
                [str(binaries / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "chat", "chat"], directory, user
            )
            yield server
        finally:
            server.stop()


def _check(command: list[str], directory: str, user: str | None) -> None:
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, preexec_fn=_as_user(user, signal.SIGKILL)
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr or done.stdout}")


def _as_user(user: str | None, parent_death: signal.Signals) -> Callable[[], None]:
    def prepare() -> None:
        os.setsid()  # a Ctrl-C for pytest is not one for the server; the fixture stops it
        if user is not None:
            entry = pwd.getpwnam(user)
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        # Changing the user clears the death signal, so it comes last.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, parent_death)

    return prepare


def die_with_parent() -> None:
    """In a child before it becomes its program: it is killed when this process ends, however that ends."""
    _as_user(None, signal.SIGKILL)()


def stop_with_parent() -> None:
    """The same for what has children of its own: it is asked to stop.

    Linux means the thread that started the child: call it from one that stays.
    """
    _as_user(None, signal.SIGTERM)()


@contextmanager
def stopping(process: subprocess.Popen[bytes], stop: signal.Signals) -> Iterator[None]:
    """Stop a process at the end of the block; kill it when it does not."""
    try:
        yield
    finally:
        process.send_signal(stop)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(is_ready: Callable[[], bool], timeout_s: float) -> None:
    """Wait until something is so. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready after {timeout_s:.0f} s")
        time.sleep(0.05)


def _wait(process: subprocess.Popen[bytes], is_ready: Callable[[], bool], name: str) -> None:
    deadline = time.monotonic() + _START_S
    while not is_ready():
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with exit status {process.returncode} while starting")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} was not ready after {_START_S:.0f} s")
        time.sleep(0.02)


def _answers(port: int, question: bytes, answer: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(question)
            return connection.recv(64).startswith(answer)
    except OSError:
        return False
