"""Races on one real database, in a process of their own: threads see no transaction of the tests around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
DATABASES: Final = ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))]


def run(module: str, database: str, directory: Path, request: pytest.FixtureRequest) -> Any:
    """Run a module on an empty database; return the JSON it prints."""
    url = f"sqlite:///{directory}/race.sqlite3"
    if database == "postgresql":
        url = request.getfixturevalue("fresh_postgres_url")
    done = subprocess.run(
        [sys.executable, "-m", module], cwd=ROOT, env={**os.environ, "DATABASE_URL": url},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
