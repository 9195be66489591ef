"""`manage.py up` with every real process, the fake engine and SQLite: starting, restarting, stopping."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from tests.servers import free_port
from tests.service import Service, copy_checkout, running, start
from tests.unit.ops.test_supervisor import eventually, is_running

pytestmark = [pytest.mark.needs("redis"), pytest.mark.timeout(300)]
ROLES = {"web", "worker", "records", "flower", "redis"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("up"), CHAT_ENGINE="fake") as found:
        yield found


def status(url: str) -> int:
    with urllib.request.urlopen(url, timeout=5) as answer:
        code: int = answer.status
        return code


def pids(service: Service) -> list[int]:
    return [pid for members in service.state["processes"].values() for pid in members]


def test_the_state_file_says_what_runs_and_is_private(service: Service) -> None:
    assert set(service.state) == {"url", "flower", "redis", "database", "processes"}
    assert set(service.state["processes"]) == ROLES
    assert all(len(members) == 1 for members in service.state["processes"].values())
    assert all(map(is_running, pids(service)))
    assert stat.S_IMODE((service.root / "var" / "up.json").stat().st_mode) == 0o600


def test_every_address_of_the_table_answers(service: Service) -> None:
    assert status(f"{service.url}/livez") == 200
    assert status(f"{service.url}/accounts/login/") == 200
    assert status(f"{service.state['flower']}/healthcheck") == 200
    assert redis.Redis.from_url(service.state["redis"]).ping()
    for part in (f"{service.url}/", f"{service.url}/admin/", service.state["flower"]):
        assert part in service.output


def test_a_page_has_its_style_and_script(service: Service) -> None:
    assert status(f"{service.url}/static/admin/css/base.css") == 200


def test_flower_asks_for_its_password_which_no_command_line_shows(service: Service) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        status(f"{service.state['flower']}/")
    password = (service.root / "var" / "flower_password").read_text().strip()
    lines = [" ".join(psutil.Process(pid).cmdline()) for pid in pids(service)]
    assert not any(password in line for line in lines)


def test_a_worker_has_neither_database_nor_secret(service: Service) -> None:
    (worker,) = service.state["processes"]["worker"]
    names = set(psutil.Process(worker).environ())
    assert not names & {"SECRET_KEY", "DATABASE_URL", "DJANGO_SETTINGS_MODULE", "CHAT_DEMO_PASSWORD"}


def test_many_sockets_may_be_open(service: Service) -> None:
    (web,) = service.state["processes"]["web"]
    soft, hard = psutil.Process(web).rlimit(psutil.RLIMIT_NOFILE)
    assert soft >= min(65536, hard)


def test_a_second_up_in_the_same_checkout_is_refused(service: Service) -> None:
    environment = {**os.environ, "PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "manage.py", "up"],
        cwd=service.root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "already runs from this directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert service.process.poll() is None


@pytest.mark.parametrize("role", ["web", "worker", "records", "flower", "redis"])
def test_what_is_killed_comes_back(service: Service, role: str) -> None:
    (before,) = service.state["processes"][role]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: service.state["processes"][role] not in ([], [before]), 30)
    eventually(lambda: f"{'worker-w1' if role == 'worker' else 'web1' if role == 'web' else role} is ready again"
               in service.output, 60)  # fmt: skip
    assert status(f"{service.url}/livez") == 200


def test_ctrl_c_leaves_nothing_and_a_second_start_finds_the_users(tmp_path: Path) -> None:
    root = copy_checkout(tmp_path)
    first = start(root, CHAT_ENGINE="fake", CHAT_DEMO_PASSWORD="")
    first.wait_ready()
    eventually(lambda: "shown this once" in first.output)
    before, port = pids(first), first.state["redis"]
    first.stop()
    assert "\nstopped\n" in first.output
    assert not (root / "var" / "up.json").exists()
    assert not any(map(is_running, before))

    second = start(root, CHAT_ENGINE="fake", CHAT_DEMO_PASSWORD="")
    second.wait_ready()
    try:
        assert second.state["redis"] == port
        assert "shown this once" not in second.output
        before = pids(second)
        # Not even a killed supervisor leaves anything.
        (up,) = {psutil.Process(pid).ppid() for pid in before}
        os.kill(up, signal.SIGKILL)
        eventually(lambda: not any(map(is_running, before)))
    finally:
        second.process.wait(20)


def test_whoever_is_made_is_shown_even_when_the_start_is_broken_off(tmp_path: Path) -> None:
    root = copy_checkout(tmp_path)
    service = start(root, CHAT_ENGINE="fake", CHAT_DEMO_PASSWORD="")
    eventually(lambda: _num_users(root) == 2, 60)
    service.stop()
    assert "stopping before everything was ready" in service.output
    assert "shown this once" in service.output


def _num_users(root: Path) -> int:
    try:
        with contextlib.closing(sqlite3.connect(root / "var" / "chatproject.sqlite3")) as database:
            found: int = database.execute("SELECT count(*) FROM accounts_user").fetchone()[0]
            return found
    except sqlite3.OperationalError:  # not migrated so far
        return 0


def test_a_port_in_use_is_one_clear_sentence(tmp_path: Path) -> None:
    root = copy_checkout(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = start(root, PORT=str(port))
        assert refused.process.wait(60) != 0
    assert f"Port {port} on 127.0.0.1 is in use" in refused.output
    assert "Traceback" not in refused.output
    assert not (root / "var" / "up.json").exists()


def test_a_redis_of_ones_own_and_two_webs(tmp_path: Path, redis_url: str) -> None:
    with running(tmp_path, CHAT_ENGINE="fake", REDIS_URL=redis_url, WEBS="2", WORKERS="0") as service:
        assert service.state["redis"] == redis_url
        counts = {role: len(members) for role, members in service.state["processes"].items()}
        assert counts == {"web": 2, "worker": 0, "records": 1, "flower": 1, "redis": 0}
        port = int(service.url.rpartition(":")[2])
        assert status(f"http://127.0.0.1:{port + 1}/livez") == 200


@pytest.mark.parametrize("setting", ["PORT=abc", "WEBS=0", "SIGNUP=maybe", "SECRET_KEY_FILE=/nowhere"])
def test_a_wrong_setting_is_one_clear_sentence(tmp_path: Path, setting: str) -> None:
    name, _, value = setting.partition("=")
    done = subprocess.run(
        [sys.executable, "manage.py", "up"], cwd=copy_checkout(tmp_path), env={**os.environ, name: value},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{name}=" in done.stderr
    assert ".env.example" in done.stderr
    assert "Traceback" not in done.stderr
