"""The service as a user starts it, once per run, with the fake engine or the bundled model; and Alice at its page."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.page import Person, chromium, signed_in
from tests.e2e.wire import Wire
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The machine's Chromium. It ends with the module: playwright's event loop lets no async test have its own."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def cookies(browser: Browser, service: Running) -> Any:
    """A signed-in browser's cookies: checking a password is slow on purpose. Of one module: a test may sign out."""
    return signed_in(browser, service.url, "demo", service.password)


@pytest.fixture
def alice(browser: Browser, service: Running, cookies: Any) -> Iterator[Person]:
    """A signed-in browser whose pages complain of nothing."""
    with Person(browser, service.url, storage_state=cookies) as person:
        yield person
    assert person.errors == []


@pytest.fixture
def page(alice: Person) -> Page:
    """A tab of Alice's, at a new chat."""
    return alice.tab()


@pytest.fixture
def wire() -> Wire:
    """What lies between the page of ``wired`` and the service."""
    return Wire()


@pytest.fixture
def wired(browser: Browser, service: Running, cookies: Any, wire: Wire) -> Iterator[Person]:
    """A signed-in browser whose connection a test breaks, in answers of 3 s: its pages may complain."""
    with Person(browser, service.url, max_tokens=150, storage_state=cookies) as person:
        person.context.route_web_socket("**/ws/chat/", wire.connect)
        yield person
