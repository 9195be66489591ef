"""What a test needs of the machine, and the list at the end of what could not run and how to get it.

``@pytest.mark.needs("redis", "chromium")`` skips the test where a part is missing. With ``CI=1`` a missing part fails
the run: a check that was not done must not look like one that passed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.servers import find_postgresql, find_redis


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing a machine may lack."""

    is_there: Callable[[], bool]
    how: str  # to get it, one line
    is_required: bool = True  # with CI=1; not for what CI machines cannot have


def find_chromium() -> str | None:
    """Return the Chromium (or Chrome) on PATH."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def _module(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def _cuda() -> bool:
    if not Path("/dev/nvidiactl").exists() or not _module("torch"):
        return False
    import torch

    return bool(torch.cuda.is_available())


def _mkl() -> bool:
    if not _module("torch"):
        return False
    import torch

    return bool(torch.backends.mkl.is_available())


PARTS: dict[str, Part] = {
    "redis": Part(is_there=lambda: find_redis() is not None, how="apt-get install redis-server"),
    "postgresql": Part(is_there=lambda: find_postgresql() is not None, how="apt-get install postgresql"),
    "chromium": Part(is_there=lambda: find_chromium() is not None, how="apt-get install chromium fonts-dejavu"),
    "torch": Part(is_there=lambda: _module("torch", "transformers"), how="make setup"),
    "triton": Part(is_there=lambda: _module("triton"), how="make setup"),
    "mkl": Part(is_there=_mkl, how="an x86 machine, where torch brings MKL", is_required=False),
    "hadolint": Part(is_there=lambda: (Path(sys.executable).parent / "hadolint").exists(), how="make setup"),
    "cuda": Part(is_there=_cuda, how="a machine with an NVIDIA GPU and a CUDA build of torch", is_required=False),
    "humming": Part(
        is_there=lambda: _module("humming", "cuda"), how="pip install -r requirements/vendor.txt", is_required=False
    ),
    "buildah": Part(
        is_there=lambda: bool(shutil.which("buildah") and shutil.which("mmdebstrap")),
        how="apt-get install buildah mmdebstrap (as root; builds both images, 7 minutes)",
        is_required=False,
    ),
    "root": Part(is_there=lambda: os.geteuid() == 0, how="run the tests as root", is_required=False),
}


@cache
def has(name: str) -> bool:
    """Say whether this machine has the part. Raises KeyError for a part nobody knows."""
    return PARTS[name].is_there()


_missing: Counter[str] = Counter()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"needs(name, ...): skipped and listed where one is missing of {', '.join(PARTS)}"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        names = [name for mark in item.iter_markers("needs") for name in mark.args]
        unknown = [name for name in names if name not in PARTS]
        if unknown:
            raise pytest.UsageError(f"{item.nodeid} needs {unknown}; known are {', '.join(PARTS)} (tests/needs.py)")
        missing = [name for name in names if not has(name)]
        if missing:
            _missing.update(missing)
            item.add_marker(pytest.mark.skip(reason=f"this machine has no {', '.join(missing)}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _missing:
        return
    terminalreporter.section("could not run on this machine")
    for name, count in sorted(_missing.items()):
        part = PARTS[name]
        note = "" if part.is_required else " (not required of CI)"
        terminalreporter.line(f"{count:4d} test{'s' if count > 1 else ' '} without {name}: {part.how}{note}")
    if os.environ.get("CI") == "1" and _missing_required():
        terminalreporter.line("CI=1: every check must run, so this run fails.", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("CI") == "1" and _missing_required() and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _missing_required() -> list[str]:
    return [name for name in _missing if PARTS[name].is_required]
