"""`var/up.json`: what runs, for tests and tools. And the lock that keeps a checkout to one `up`."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from chatproject.ops.up.errors import AlreadyRunning


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the file says. Its URLs hold passwords, so only the owner may read it."""

    url: str
    flower: str
    redis: str
    database: str
    processes: Mapping[str, Sequence[int]]  # role -> process ids


def write(path: Path, state: State) -> None:
    """Write the file whole: a reader sees the old one or the new one, never a part. Raises OSError on a full disk."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(state), file)
    new.replace(path)


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock of this checkout; the system lets go of it when the process ends in any way.

    Raises AlreadyRunning, naming the other's process id.
    """
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            raise AlreadyRunning(
                f"The service already runs from this directory (process {pid}; addresses in var/up.json). "
                f"Stop it first: Ctrl-C there, or kill {pid}. For a second one use another checkout."
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
