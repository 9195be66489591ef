"""The parts of `up` that need no process: secrets, environments, ports, the state file, logs, users and the table."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth import authenticate, get_user_model

from chatproject import env
from chatproject.ops.up import ports, processes, state_file, table, users
from chatproject.ops.up.config import Config
from chatproject.ops.up.errors import AlreadyRunning, PortInUse
from chatproject.ops.up.log_tail import LogTail, last_lines
from chatproject.ops.up.process import rotate
from chatproject.ops.up.redis_server import RedisChoice
from tests.servers import free_port


def config(root: Path, **values: str) -> Config:
    return Config.read({**env.read({}, None), **values}, root=root)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_secrets_stay_over_restarts_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    first, second = config(tmp_path), config(tmp_path)
    assert first.secret_key == second.secret_key
    assert len(first.secret_key) >= 50
    assert first.flower_password == second.flower_password
    for name in ("secret_key", "flower_password"):
        assert stat.S_IMODE((tmp_path / "var" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "var").stat().st_mode) == 0o700


def test_a_given_secret_is_used_and_not_written_down(tmp_path: Path) -> None:
    assert config(tmp_path, SECRET_KEY="given").secret_key == "given"
    assert not (tmp_path / "var" / "secret_key").exists()


def test_workers_see_no_secret_of_the_web_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "SECRET_KEY", "METRICS_TOKEN", "CHAT_DEMO_PASSWORD", "FLOWER_PASSWORD"):
        monkeypatch.setenv(name, "geheim")
        monkeypatch.setenv(f"{name}_FILE", "/geheim")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "chatproject.settings")
    made = config(tmp_path, SECRET_KEY="geheim", CHAT_DEMO_PASSWORD="geheim", WORKERS="2", CHAT_ENGINE="fake")
    workers = [spec for spec in processes.specs(made, redis_url="redis://x") if spec.role == "worker"]
    assert [spec.environment["CHAT_SLOT"] for spec in workers] == ["w1", "w2"]
    for spec in workers:
        assert "geheim" not in "".join(spec.environment.values())
        assert "DJANGO_SETTINGS_MODULE" not in spec.environment
        assert spec.environment["CHAT_ENGINE"] == "fake"


def test_what_dotenv_says_reaches_the_workers(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CHAT_FLUSH_MS=30\nCHAT_DEMO_PASSWORD=geheim\n")
    (worker,) = [spec for spec in processes.specs(config(tmp_path), redis_url="redis://x") if spec.role == "worker"]
    assert worker.environment["CHAT_FLUSH_MS"] == "30"
    assert "CHAT_DEMO_PASSWORD" not in worker.environment


def test_no_secret_stands_on_a_command_line(tmp_path: Path) -> None:
    made = config(tmp_path)
    for spec in processes.specs(made, redis_url="redis://:geheim@x/0"):
        line = " ".join(spec.command)
        assert made.flower_password not in line
        assert made.secret_key not in line
        assert "geheim" not in line


def test_each_web_process_has_the_next_port(tmp_path: Path) -> None:
    specs = processes.specs(config(tmp_path, PORT="9000", WEBS="3"), redis_url="redis://x")
    endpoints = [spec.command[spec.command.index("-e") + 1] for spec in specs if spec.role == "web"]
    assert [endpoint.split(":")[1] for endpoint in endpoints] == ["port=9000", "port=9001", "port=9002"]


def test_a_port_in_use_is_named_with_its_variable(tmp_path: Path, taken: int) -> None:
    with pytest.raises(PortInUse, match=rf"Port {taken} on 127.0.0.1 is in use.*PORT="):
        ports.check(config(tmp_path, PORT=str(taken), FLOWER_PORT=str(free_port())))
    with pytest.raises(PortInUse, match=rf"Port {taken}.*FLOWER_PORT="):
        ports.check(config(tmp_path, PORT=str(free_port()), FLOWER_PORT=str(taken)))


@pytest.mark.parametrize(("name", "value"), [("PORT", "web"), ("PORT", "70000"), ("WEBS", "0"), ("WORKERS", "-1")])
def test_a_wrong_number_is_named(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(env.BadEnvironment, match=f"{name}="):
        config(tmp_path, **{name: value})


def test_a_second_up_in_one_checkout_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from chatproject.ops.up import state_file\n"
        "with state_file.only_one(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "up.lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning, match=f"process {other.pid}"), state_file.only_one(path):
            pass
        other.kill()
    with state_file.only_one(path):  # the lock of a killed one is free
        pass


def test_the_state_file_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "up.json"
    state = state_file.State(url="http://a", flower="http://b", redis="redis://c", database="d", processes={"web": [1]})
    state_file.write(path, state)
    state_file.write(path, state)
    assert json.loads(path.read_text()) == {
        "url": "http://a", "flower": "http://b", "redis": "redis://c", "database": "d", "processes": {"web": [1]},
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_only_new_warnings_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("an old ERROR\n")
    tail = LogTail(log)
    with log.open("a") as file:
        file.write("INFO fine\nx WARNING one\nx ERROR half")
        file.flush()
        assert tail.warnings() == ["x WARNING one"]
        file.write(" a line\n")
        file.flush()
        assert tail.warnings() == ["x ERROR half a line"]
        file.write("ERROR\n" * 50)
        file.flush()
        assert len(tail.warnings()) == 21
    assert tail.warnings() == []


def test_a_large_log_is_put_aside_once(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_bytes(b"x" * (21 * 1024 * 1024) + b"\nlast line\n")
    assert last_lines(log, 1).strip() == "last line"
    rotate(log)
    assert log.stat().st_size == 0
    assert (tmp_path / "web.log.1").stat().st_size > 21 * 1024 * 1024


@pytest.mark.django_db
def test_passwords_are_shown_once_and_work() -> None:
    shown = users.ensure("")
    assert set(shown) == {"demo", "admin"}
    for name, password in shown.items():
        assert authenticate(username=name, password=password) is not None
    assert users.ensure("") == {}
    found = get_user_model().objects
    assert found.get(username="admin").is_superuser
    assert not found.get(username="demo").is_staff
    plan = found.get(username="demo").plan
    assert plan is not None
    assert plan.name == "unlimited"
    assert plan.tokens_per_day is None


@pytest.mark.django_db
def test_a_given_password_holds_for_both_at_every_start() -> None:
    users.ensure("")
    assert users.ensure("the one of the tests") == {}
    for name in ("demo", "admin"):
        assert authenticate(username=name, password="the one of the tests") is not None


def test_the_table_says_where_everything_is(tmp_path: Path) -> None:
    redis = RedisChoice(url="redis://:geheim@127.0.0.1:7777/0", spec=None, origin="from REDIS_URL")
    made = config(tmp_path, HOST="0.0.0.0", PORT="9000", DATABASE_URL="postgres://chat:geheim@db/chat")
    text = table.render(made, redis, passwords={"demo": "abc"}, missing=["worker-w1"])
    for part in (
        "http://127.0.0.1:9000/",
        "/admin/",
        ":5555/",
        "redis://127.0.0.1:7777/0",
        "postgres://db/chat",
        "abc",
    ):
        assert part in text
    assert "Not ready: worker-w1" in text
    assert "geheim" not in text
    assert "bundled demo model, 1 worker" in text
    fake = config(tmp_path, CHAT_ENGINE="fake", WORKERS="0")
    assert "fake engine, no worker: messages wait" in table.render(fake, redis, passwords={}, missing=[])
