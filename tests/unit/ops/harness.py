"""A supervisor over small stand-in children, run as a process of its own: `python -m tests.unit.ops.harness DIR`.

Each child appends what happens to it to DIR/events; DIR/behaviour.json says how it behaves. No Django, no Redis.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import psutil

from chatproject.ops.up import process
from chatproject.ops.up.errors import StartFailed, StopRequested
from chatproject.ops.up.process import Role, Spec, Status
from chatproject.ops.up.stop_signals import StopSignals
from chatproject.ops.up.supervisor import Supervisor

ROLES: tuple[Role, ...] = ("redis", "web", "worker", "records", "flower")

# Arguments: name, events file, behaviour: "" | "stubborn" (ignores SIGTERM) | "broken" (ends at once) |
# "misled" (says that its configuration is wrong) | "parent" (starts a child of its own).
CHILD = """
import os, signal, subprocess, sys, time
name, events, behaviour = sys.argv[1:]
def note(what):
    with open(events, "a") as file:
        file.write(f"{name} {what} {os.getpid()}\\n")
def stop(*_):
    note("stopped")
    sys.exit(0)
if behaviour == "broken":
    print("the model directory is missing")
    sys.exit(3)
if behaviour == "misled":
    note("ended")
    print("there is no such model")
    sys.exit(os.EX_CONFIG)
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else stop)
if behaviour == "parent":
    child = subprocess.Popen(["sleep", "600"])
    note(f"child {child.pid}")
print("2026 WARNING something to see", flush=True)
note("started")
while True:
    time.sleep(600)
"""


def main(directory: Path) -> int:
    events = directory / "events"
    events.touch()
    behaviours = json.loads((directory / "behaviour.json").read_text())
    process.STEADY_S = float(behaviours.get("steady_s", process.STEADY_S))  # type: ignore[misc]

    def ready(name: str) -> Status:
        started = [line.split()[-1] for line in events.read_text().splitlines() if line.startswith(f"{name} started")]
        return Status(is_ready=bool(started) and not _is_stopped(int(started[-1])), detail="starting")

    def spec(role: Role) -> Spec:
        return Spec(
            role=role,
            name=role,
            command=(sys.executable, "-S", "-E", "-c", CHILD, role, str(events), behaviours.get(role, "")),
            environment={},
            directory=directory,
            log=directory / f"{role}.log",
            probe=lambda: ready(role),
            grace_s=float(behaviours.get("grace_s", 20)),
            hang_s=1.0 if role == "web" else None,
            is_essential=role != "worker",
            on_end=lambda: _note(events, f"{role} end-noted"),
            death_signal=signal.SIGKILL,
        )

    with StopSignals() as signals:
        supervisor = Supervisor(signals, say=lambda text: print(text, flush=True))
        try:
            supervisor.start([spec(role) for role in ROLES])
            _pids(directory, supervisor)
            supervisor.watch(lambda: _pids(directory, supervisor))
        except (StartFailed, StopRequested) as error:
            print(error, flush=True)
            return 1
        finally:
            supervisor.stop()
    return 0


def _is_stopped(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() == psutil.STATUS_STOPPED


def _note(events: Path, what: str) -> None:
    with events.open("a") as file:
        file.write(f"{what}\n")


def _pids(directory: Path, supervisor: Supervisor) -> None:
    if (directory / "full").exists():
        raise OSError(errno.ENOSPC, "No space left on device")
    new = directory / f"pids.{os.getpid()}"
    new.write_text(json.dumps(supervisor.pids()))
    new.replace(directory / "pids.json")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
