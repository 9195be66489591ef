"""A worker that died is back as fast as its model loads, because a spare has imported everything already."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from chatproject.ops.up import probes
from chatproject.ops.up.process import Process, Spec
from chatproject.ops.up.spare import Spare
from tests.unit.ops.test_supervisor import eventually, is_running

pytestmark = pytest.mark.needs("redis")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def environment(fresh_redis_url: str) -> dict[str, str]:
    return {
        **os.environ, "REDIS_URL": fresh_redis_url, "CHAT_ENGINE": "fake",
        "CELERY_CUSTOM_WORKER_POOL": "workers.pool:EnginePool",
    }  # fmt: skip


@pytest.fixture
def spare(tmp_path: Path, environment: dict[str, str]) -> Iterator[Spare]:
    spare = Spare(
        command=(sys.executable, "-m", "workers.spare"), environment=environment, directory=ROOT,
        log=tmp_path / "spare.log",
    )  # fmt: skip
    spare.ensure()
    yield spare
    spare.stop()


@pytest.fixture
def worker(tmp_path: Path, environment: dict[str, str], spare: Spare) -> Iterator[Process]:
    celery = (sys.executable, "-m", "celery", "-A", "workers.app", "worker", "--pool=custom", "-c", "2")
    process = Process(
        Spec(
            role="worker", name="worker-w7", command=(*celery, "-n", f"spare{os.getpid()}@%h"), directory=ROOT,
            environment=environment | {"CHAT_SLOT": "w7"}, log=tmp_path / "worker-w7.log", grace_s=10, spare=spare,
            probe=probes.worker_ready(environment["REDIS_URL"], "w7"),
        )
    )  # fmt: skip
    yield process
    process.kill()
    eventually(process.is_gone)


def test_a_spare_becomes_the_worker(worker: Process, spare: Spare, tmp_path: Path) -> None:
    waiting = spare.pid
    assert waiting is not None
    worker.start(time.monotonic())
    assert (worker.pid, spare.pid) == (waiting, None)
    eventually(worker.ask_ready, 60)
    assert "[queues]" in (tmp_path / "worker-w7.log").read_text()
    worker.ask_to_stop()
    eventually(worker.is_gone, 30)  # it stops as any worker does


def test_without_a_living_spare_a_worker_starts_as_usual(worker: Process, spare: Spare) -> None:
    dead = spare.pid
    assert dead is not None
    os.kill(dead, signal.SIGKILL)
    eventually(lambda: not is_running(dead))
    worker.start(time.monotonic())
    assert worker.pid not in (None, dead)


def test_a_spare_waits_and_leaves_when_nobody_is_left_to_call_it(spare: Spare) -> None:
    pid = spare.pid
    assert pid is not None
    spare.ensure()
    assert spare.pid == pid  # one is enough
    waiting = psutil.Process(pid)
    assert spare._popen is not None
    assert spare._popen.stdin is not None
    spare._popen.stdin.close()
    eventually(lambda: not waiting.is_running() or waiting.status() == psutil.STATUS_ZOMBIE, 60)
