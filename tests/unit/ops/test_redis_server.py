"""The Redis of a `make run` keeps what waits over restarts, and is closed to others."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import psutil
import pytest
import redis

from chatproject.ops.up import redis_server
from chatproject.ops.up.errors import RedisUnavailable
from chatproject.ops.up.process import Process
from tests.servers import free_port
from tests.unit.ops.test_supervisor import eventually

pytestmark = pytest.mark.needs("redis")


def run(var: Path) -> tuple[Process, str]:
    (var / "log").mkdir(parents=True, exist_ok=True)
    choice = redis_server.choose(url="", var=var)
    assert choice.spec is not None
    process = Process(choice.spec)
    process.start(0.0)
    eventually(lambda: choice.spec is not None and choice.spec.probe().is_ready)
    return process, choice.url


def stop(process: Process) -> None:
    process.ask_to_stop()
    eventually(process.is_gone)


def test_a_restart_finds_the_data_and_the_same_address(tmp_path: Path) -> None:
    process, url = run(tmp_path)
    with redis.Redis.from_url(url) as client:
        client.set("alice", "waits")
    stop(process)
    process, again = run(tmp_path)
    try:
        assert again == url
        with redis.Redis.from_url(again, decode_responses=True) as client:
            assert client.get("alice") == "waits"
    finally:
        stop(process)


def test_it_evicts_nothing_and_writes_every_second(tmp_path: Path) -> None:
    process, url = run(tmp_path)
    try:
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("append*") | {"appendonly": "yes", "appendfsync": "everysec"} == client.config_get(
                "append*"
            )
    finally:
        stop(process)


def test_others_on_the_machine_are_kept_out(tmp_path: Path) -> None:
    process, url = run(tmp_path)
    try:
        bare = redis_server.without_password(url)
        assert bare != url
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(bare).get("alice")
        assert process.pid is not None
        password = (tmp_path / "redis" / "password").read_text().strip()
        assert password not in " ".join(psutil.Process(process.pid).cmdline())
        for name in ("password", "redis.conf"):
            assert stat.S_IMODE((tmp_path / "redis" / name).stat().st_mode) == 0o600
    finally:
        stop(process)


def test_a_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    first, url = run(tmp_path / "first")
    try:
        (tmp_path / "second" / "redis").mkdir(parents=True)
        port = (tmp_path / "first" / "redis" / "port").read_text()
        (tmp_path / "second" / "redis" / "port").write_text(port)
        second, other = run(tmp_path / "second")
        stop(second)
        assert other.rpartition(":")[2] != url.rpartition(":")[2]
    finally:
        stop(first)


def test_a_killed_redis_comes_back_with_its_data(tmp_path: Path) -> None:
    process, url = run(tmp_path)
    with redis.Redis.from_url(url) as client:
        client.set("bob", "waits")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: process.ended(1.0) is not None)
    process.start(2.0)
    try:
        eventually(lambda: process.spec.probe().is_ready)
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.get("bob") == "waits"
    finally:
        stop(process)


def test_a_named_redis_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(RedisUnavailable) as raised:
        redis_server.choose(url=f"redis://:geheim@127.0.0.1:{free_port()}/0", var=tmp_path)
    assert "does not answer" in str(raised.value)
    assert "leave REDIS_URL empty" in str(raised.value)
    assert "geheim" not in str(raised.value)


def test_a_named_redis_is_used_and_not_started(redis_url: str, tmp_path: Path) -> None:
    choice = redis_server.choose(url=redis_url, var=tmp_path)
    assert (choice.url, choice.spec) == (redis_url, None)


def test_without_any_server_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(RedisUnavailable, match="apt-get install redis-server"):
        redis_server.choose(url="", var=tmp_path)
