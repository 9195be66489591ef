"""A test that could not run is never mistaken for one that passed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SUITE = """
import pytest
import tests.needs

tests.needs.PARTS["yeti"] = tests.needs.Part(is_there=lambda: False, how="climb higher")
tests.needs.PARTS["unicorn"] = tests.needs.Part(is_there=lambda: False, how="believe", is_required=False)

@pytest.mark.needs("unicorn")
def test_rare(): ...

def test_plain(): ...
"""
REQUIRED = """
@pytest.mark.needs("yeti")
def test_seen(): raise AssertionError("it must not run")
"""


def run(folder: Path, suite: str, ci: str = "") -> subprocess.CompletedProcess[str]:
    (folder / "test_inner.py").write_text(suite)
    command = [sys.executable, "-m", "pytest", "-p", "tests.needs", "-p", "no:django", "-c", os.devnull, str(folder)]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_what_could_not_run_is_listed_with_how_to_get_it(tmp_path: Path) -> None:
    done = run(tmp_path, SUITE + REQUIRED)
    assert done.returncode == 0, done.stdout
    assert "1 test  without yeti: climb higher" in done.stdout
    assert "1 passed, 2 skipped" in done.stdout


def test_with_ci_a_check_that_could_not_run_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, SUITE + REQUIRED, ci="1")
    assert done.returncode == 1, done.stdout
    assert "CI=1: every check must run" in done.stdout


def test_with_ci_what_no_ci_machine_has_may_be_missing(tmp_path: Path) -> None:
    done = run(tmp_path, SUITE, ci="1")
    assert done.returncode == 0, done.stdout
    assert "without unicorn: believe (not required of CI)" in done.stdout


@pytest.mark.parametrize("name", ["redsi", "Redis"])
def test_a_misspelt_need_is_an_error(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, f'import pytest\n@pytest.mark.needs("{name}")\ndef test_it(): ...\n')
    assert done.returncode != 0
    assert f"needs ['{name}']" in done.stdout + done.stderr
