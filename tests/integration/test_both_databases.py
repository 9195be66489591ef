"""The tables, admission and records keep their promises on PostgreSQL as on SQLite: the same tests, run again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "tests/unit/accounts", "tests/unit/generations", "tests/unit/chat", "tests/unit/test_kept_connection.py",
    "tests/unit/test_statements.py", "tests/unit/test_service_clock.py",
)  # fmt: skip


@pytest.mark.needs("postgresql", "redis")
@pytest.mark.timeout(600)
def test_accounts_generations_and_chat_pass_on_postgresql(postgres_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", *FOLDERS],
        cwd=ROOT, env={**os.environ, "DATABASE_URL": postgres_url}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    sys.stdout.write(done.stdout[-20_000:])
    assert done.returncode == 0, "on PostgreSQL; the inner run's report is above"
    assert " passed" in done.stdout
