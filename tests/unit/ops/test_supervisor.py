"""What an operator relies on: what dies comes back, stopping has an order, and nothing is left behind in any case."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.unit.ops.harness import ROLES


@dataclass
class Run:
    directory: Path
    process: subprocess.Popen[str]

    def pids(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = json.loads((self.directory / "pids.json").read_text())
        return found

    def events(self) -> list[str]:
        return (self.directory / "events").read_text().splitlines()

    def output(self) -> str:
        return (self.directory / "out").read_text()


def eventually(is_so: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(*, is_awaited: bool = True, **behaviour: object) -> Run:
        (tmp_path / "behaviour.json").write_text(json.dumps(behaviour))
        with (tmp_path / "out").open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.unit.ops.harness", str(tmp_path)], stdout=out, stderr=out, text=True
            )
        run = Run(tmp_path, process)
        runs.append(run)
        if is_awaited:
            eventually((tmp_path / "pids.json").exists)
        return run

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait()


def test_it_stops_in_order_web_first_and_redis_last(start: Callable[..., Run]) -> None:
    run = start()
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(20) == 0
    stopped = [event.split()[0] for event in run.events() if " stopped " in event]
    assert stopped == ["web", "worker", "records", "flower", "redis"]


def test_a_full_disk_ends_nobody_and_the_news_are_written_when_there_is_room(start: Callable[..., Run]) -> None:
    run = start()
    (worker,) = run.pids()["worker"]
    (run.directory / "full").touch()
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: len([event for event in run.events() if event.startswith("worker started")]) == 2)
    eventually(lambda: "cannot be told" in run.output())
    assert run.process.poll() is None
    assert run.pids()["worker"] == [worker]
    (run.directory / "full").unlink()
    eventually(lambda: run.pids()["worker"] not in ([worker], []))


def test_what_dies_is_started_again(start: Callable[..., Run]) -> None:
    run = start()
    (before,) = run.pids()["records"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: run.pids()["records"] not in ([], [before]))
    assert "records was killed by signal 9; starting it again" in run.output()
    eventually(lambda: "records is ready again" in run.output())


def test_who_dies_at_once_waits_longer_each_time_and_who_ran_for_a_while_does_not(start: Callable[..., Run]) -> None:
    run = start(steady_s=1.5)

    def waits() -> list[str]:
        return re.findall(r"flower was killed by signal 9; starting it again in ([\d.]+) s", run.output())

    def kill(times: int, *, after_s: float) -> None:
        for _ in range(times):
            num = len(waits())
            eventually(lambda: bool(run.pids()["flower"]))
            time.sleep(after_s)
            os.kill(run.pids()["flower"][0], signal.SIGKILL)
            eventually(lambda num=num: len(waits()) > num)
            eventually(lambda: run.output().count("flower is ready again") == len(waits()))

    kill(3, after_s=0.0)
    assert waits() == ["0.1", "0.4", "1.6"]
    kill(2, after_s=2.0)
    assert waits()[3:] == ["0.1", "0.1"]


def test_who_does_not_answer_any_more_is_killed_and_started_again(start: Callable[..., Run]) -> None:
    run = start()
    (web,), (records,) = run.pids()["web"], run.pids()["records"]
    for pid in (web, records):  # what records waits for may be away: it is not asked
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: run.pids()["web"] not in ([], [web]))
    assert "web has not answered for 1 s and is killed" in run.output()
    eventually(lambda: "web is ready again" in run.output())
    time.sleep(2)
    assert run.pids()["records"] == [records]
    assert run.output().count("is killed") == 1


def test_what_a_dead_process_held_is_let_go_before_it_is_started_again(start: Callable[..., Run]) -> None:
    run = start()
    (before,) = run.pids()["worker"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: run.pids()["worker"] not in ([], [before]))
    eventually(lambda: len([event for event in run.events() if event.startswith("worker started")]) == 2)
    of_the_worker = [event.split()[1] for event in run.events() if event.startswith("worker")]
    assert of_the_worker == ["started", "end-noted", "started"]


def test_a_killed_supervisor_leaves_nothing_behind(start: Callable[..., Run]) -> None:
    run = start()
    pids = [pid for members in run.pids().values() for pid in members]
    assert len(pids) == len(ROLES)
    run.process.kill()
    eventually(lambda: not any(map(is_running, pids)))


def test_a_second_ctrl_c_does_not_wait_for_a_stubborn_worker(start: Callable[..., Run]) -> None:
    run = start(worker="stubborn", grace_s=600)
    run.process.send_signal(signal.SIGINT)
    eventually(lambda: "stopping worker" in run.output())
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(20) == 0
    assert "killing worker" in run.output()


def test_a_stubborn_worker_is_killed_after_its_grace(start: Callable[..., Run]) -> None:
    run = start(worker="stubborn", grace_s=0.5)
    (worker,) = run.pids()["worker"]
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(20) == 0
    assert not is_running(worker)
    assert "it did not stop in time" in run.output()


def test_what_a_child_left_running_is_gone_too(start: Callable[..., Run]) -> None:
    run = start(web="parent")
    (grandchild,) = [int(event.split()[2]) for event in run.events() if event.startswith("web child")]
    assert is_running(grandchild)
    run.process.send_signal(signal.SIGINT)
    run.process.wait(20)
    eventually(lambda: not is_running(grandchild))


def test_a_web_that_cannot_start_fails_the_start_with_its_own_words(start: Callable[..., Run]) -> None:
    run = start(web="broken", is_awaited=False)
    assert run.process.wait(30) == 1
    assert "web cannot be started: it ended with status 3" in run.output()
    assert "the model directory is missing" in run.output()
    started = [int(event.split()[-1]) for event in run.events() if " started " in event]
    assert not any(map(is_running, started))


def test_a_worker_that_cannot_start_does_not_keep_the_page_away(start: Callable[..., Run]) -> None:
    run = start(worker="broken")
    assert run.pids()["worker"] == []
    assert run.pids()["web"] != []
    assert "the model directory is missing" in run.output()


def test_a_wrong_configuration_is_not_tried_again_and_again(start: Callable[..., Run]) -> None:
    run = start(worker="misled")
    assert "there is no such model" in run.output()
    assert re.search(r"worker ended with status 78; starting it again in (29|30)\.\d s", run.output())
    assert len([event for event in run.events() if event.startswith("worker ended")]) == 1


def test_ctrl_c_while_starting_stops_everything(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start(web="broken", worker="stubborn", is_awaited=False)
    eventually(lambda: (tmp_path / "events").exists() and "worker started" in (tmp_path / "events").read_text())
    run.process.send_signal(signal.SIGINT)
    eventually(lambda: "stopping worker" in run.output())
    run.process.send_signal(signal.SIGINT)
    run.process.wait(20)
    started = [int(event.split()[-1]) for event in run.events() if " started " in event]
    assert not any(map(is_running, started))


def test_warnings_of_the_processes_reach_the_terminal(start: Callable[..., Run]) -> None:
    run = start()
    eventually(lambda: "web: 2026 WARNING something to see" in run.output())
