"""A small disk of its own for what the service writes, so that it can be full. Needs root; nothing of it outlives us.

The mounts are made in a namespace of this process and its children: what is outside never sees them, and they go with
the last process.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_MB = 192  # a run leaves the most of it free
_CLONE_NEWNS, _MS_PRIVATE_REC, _MNT_DETACH = 0x00020000, (1 << 18) | (1 << 14), 2
_libc = ctypes.CDLL(None, use_errno=True)
_is_apart = False


def enter() -> bool:
    """Get a mount namespace of one's own; call before any thread. False where that is not allowed."""
    global _is_apart
    _is_apart = (
        _libc.unshare(_CLONE_NEWNS) == 0
        and _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_PRIVATE_REC), None) == 0
    )
    return _is_apart


def is_possible() -> bool:
    """Whether disks can be made here."""
    return _is_apart


@contextmanager
def small(directory: Path) -> Iterator[None]:
    """Mount one on a directory until the block ends; what lies there then stays, as plain files."""
    directory.mkdir(parents=True)
    if _libc.mount(b"none", os.fsencode(directory), b"tmpfs", ctypes.c_ulong(0), f"size={SIZE_MB}m".encode()) != 0:
        raise OSError(ctypes.get_errno(), f"no small disk at {directory}")
    try:
        yield
    finally:
        logs = directory.with_name("logs")
        if (directory / "log").is_dir():
            shutil.copytree(directory / "log", logs)
        _libc.umount2(os.fsencode(directory), _MNT_DETACH)
        if logs.is_dir():
            logs.rename(directory / "log")


def fill(directory: Path) -> Path:
    """Take all that is free; return the file to remove. What others free meanwhile stays theirs."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            block = b"\0" * size
            try:
                while file.write(block) == size:
                    pass
            except OSError:
                continue
    return path
