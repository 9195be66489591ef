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
    directory = str(Path(planted.__file__).parent)
    environment = os.environ | {
        "PYTHONPATH": f"{HOOKS}:{directory}", "CHAOS_CONTROL": str(tmp_path / "proxy.sock"), "CHAOS_CLOCKS": roles,
    }  # fmt: skip
    command = [sys.executable, "-c", CODE, "daphne"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    off_s, apart_s = map(float, done.stdout.split())
    assert ("this clock is" in done.stderr) == is_wrong
    assert (abs(off_s) > 0.2) == is_wrong
    assert abs(off_s) < 3700
    assert abs(apart_s) < 5
