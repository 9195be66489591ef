"""Fixtures for every test: real servers, and the list of what a machine lacks (tests/needs.py).

Imports nothing of Django or torch: the tests of the engine and the model run with pytest alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import postgresql_server, redis_server

pytest_plugins = ["tests.needs"]

# Without a GPU, Triton's kernels run interpreted. Triton reads this once, when anything imports it, torch included.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure() -> None:
    """Hash passwords fast: a million rounds per user say nothing that a test asks."""
    with contextlib.suppress(ImportError):
        from django.conf import settings

        if settings.configured:
            settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


def pytest_runtest_setup() -> None:
    """Let no test see the plans and models of the one before."""
    if remembered := sys.modules.get("chatproject.remembered"):
        remembered.forget_all()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a real Redis server that lives as long as the run. Mark the test with ``needs("redis")``."""
    with redis_server() as url:
        yield url


@pytest.fixture
def fresh_redis_url(redis_url: str) -> str:
    """URL of the same server, emptied for this test."""
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    return redis_url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of an empty database in a real PostgreSQL cluster. Mark the test with ``needs("postgresql")``."""
    with postgresql_server() as url:
        yield url


@pytest.fixture
def fresh_postgres_url(postgres_url: str) -> str:
    """URL of a database of this test's own in the same cluster."""
    import uuid

    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{postgres_url.rpartition('/')[0]}/{name}"
