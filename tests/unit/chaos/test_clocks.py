"""Whose clocks are wrong in a run: those of the roles that were named, Python's and Django's by the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import planted
from tests.service import HOOKS

CODE = """
import time
from django.utils import timezone
print(time.time() - time.clock_gettime(time.CLOCK_REALTIME), timezone.now().timestamp() - time.time())
"""


@pytest.mark.parametrize(("roles", "is_wrong"), [("worker", False), ("web,worker,records", True)])
def test_the_clock_of_a_web_process_is_wrong_when_it_is_to_be(tmp_path: Path, roles: str, is_wrong: bool) -> None:
    off_s, apart_s = clocks(tmp_path, roles)
    assert (abs(off_s) > 0.2) == is_wrong
    assert abs(off_s) < 3700
    assert abs(apart_s) < 5


def test_one_of_two_web_processes_is_behind_and_one_ahead(tmp_path: Path) -> None:
    offsets = [clocks(tmp_path, "web", "-e", f"tcp:port={port}:interface=x")[0] for port in (8000, 8001)]
    assert offsets[0] < 0 < offsets[1]


def clocks(tmp_path: Path, roles: str, *words: str) -> tuple[float, float]:
    """Return how far off a web process's clock is, and Django's from Python's; in seconds."""
    directory = Path(planted.__file__).parent
    environment = os.environ | {
        "PYTHONPATH": f"{HOOKS}:{directory}", "CHAOS_CONTROL": str(tmp_path / "proxy.sock"), "CHAOS_CLOCKS": roles,
    }  # fmt: skip
    command = [sys.executable, "-c", CODE, "daphne", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    off_s, apart_s = map(float, done.stdout.split())
    return off_s, apart_s
