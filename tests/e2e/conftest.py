"""The service as a user starts it, once per run: with the fake engine, and with the bundled model."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.service import PASSWORD, Service, running


@dataclass
class Running:
    """What a test needs of a running service; the users are ``demo`` and ``admin``."""

    service: Service
    password: str = PASSWORD
    _keys: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.service.url

    def manage(self, *arguments: str) -> str:
        """Run a management command as an operator would; return what it printed."""
        state = self.service.state
        done = subprocess.run(
            [".venv/bin/python", "manage.py", *arguments], cwd=self.service.root, text=True, capture_output=True,
            env={"PATH": "/usr/bin:/bin", "REDIS_URL": state["redis"], "DATABASE_URL": state["database"]}, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def key(self, user: str = "demo") -> str:
        """Return an API key of a user, made once."""
        if user not in self._keys:
            self._keys[user] = self.manage("apikey", "create", "--user", user)
        return self._keys[user]

    def processes(self, role: str) -> list[int]:
        """Return the pids of a role now."""
        pids: list[int] = self.service.state["processes"][role]
        return pids


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service whose engine is fake: any length, the same words for the same prompt."""
    with running(tmp_path_factory.mktemp("service"), CHAT_ENGINE="fake", CHAT_FAKE_STEP_MS="20") as started:
        yield Running(started)


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with the bundled model, as `make run` starts it."""
    with running(tmp_path_factory.mktemp("bundled")) as started:
        yield Running(started)
