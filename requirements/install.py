"""Make `.venv` and install the pinned requirements into it, only when they changed.

Run by make with the system's Python: standard library only. `run` is what the service needs, `dev` adds the checks.
torch comes first in a pip line of its own: which build is right depends on the machine, so it has no place in a lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "requirements"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
OLDEST = (3, 11)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SETS = {"run": ["web.txt", "gpu.txt"], "dev": ["dev.txt"]}


def main() -> int:
    """Install the set named on the command line; return the exit status."""
    if len(sys.argv) != 2 or sys.argv[1] not in SETS:
        return _fail("usage: requirements/install.py run|dev")
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        return _fail(
            f"Python {found} is too old: 3.11 or newer is needed. Install it, or name one: make PYTHON=python3.12"
        )
    (ROOT / "var").mkdir(exist_ok=True)
    with (ROOT / "var" / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `make run` and `make test` at once must not install into each other
        return _install(sys.argv[1])


def _install(name: str) -> int:
    files = list(SETS[name])
    if not (shutil.which("redis-server") or shutil.which("valkey-server")):
        files.append("redis.txt")
    if _is_installed(name, files):
        return 0
    if not _has_venv():
        # Debian keeps ensurepip apart, in python3-venv; `python -m venv` then leaves half an environment behind.
        if importlib.util.find_spec("ensurepip") is None:
            version = ".".join(map(str, sys.version_info[:2]))
            return _fail(
                f"This Python cannot make environments. On Debian or Ubuntu: apt-get install python{version}-venv"
            )
        _say(f"making {VENV.name} with Python {sys.version.split()[0]}")
        shutil.rmtree(VENV, ignore_errors=True)
        if subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False).returncode != 0:
            shutil.rmtree(VENV, ignore_errors=True)
            return _fail("the environment could not be made; the lines above say why")
    if not _has_torch() and not _install_torch():
        return 1
    files += _triton(name)
    if not _install_files(files):
        return 1
    _stamp(name).write_text(_digest(files))
    return 0


def _triton(name: str) -> list[str]:
    """Return what the kernels' tests need beside a CPU build of torch; a CUDA build brings a Triton that fits it."""
    found = list(VENV.glob("lib/python*/site-packages/torch/version.py"))
    is_cpu = any(re.search(r"^cuda.*= None$", path.read_text(), re.MULTILINE) for path in found)
    return ["triton.txt"] if name == "dev" and is_cpu else []


def _install_torch() -> bool:
    pin = (HERE / "torch.txt").read_text().strip()
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", pin]
    index = os.environ.get("TORCH_INDEX") or _dotenv("TORCH_INDEX")
    if index and not _has_gpu():
        command += ["--index-url", index]
    # Says what would come, without fetching it.
    report = subprocess.run([*command, "--dry-run", "--quiet", "--report", "-"], capture_output=True, check=False)
    packages = (
        [item["metadata"]["name"] for item in json.loads(report.stdout)["install"]] if report.returncode == 0 else []
    )
    if any(package.startswith("nvidia-") for package in packages):
        _say(f"{pin} brings CUDA: about 3 GB to download, 7 GB on disk")
        if not _has_gpu():
            _say(f"no NVIDIA GPU is seen here. The CPU build is 0.2 GB: Ctrl-C, then  TORCH_INDEX={CPU_INDEX} make run")
            time.sleep(10 if sys.stdout.isatty() else 0)
    else:
        _say(f"installing {pin} (CPU build, 0.2 GB)")
    if subprocess.run([*command, "--no-warn-script-location"], check=False).returncode != 0:
        _fail(f"{pin} could not be installed; the lines above say why. A CPU build: TORCH_INDEX={CPU_INDEX} make run")
        return False
    return True


def _install_files(files: list[str]) -> bool:
    pins = {
        line.split("==")[0].strip().lower()
        for file in files
        for line in (HERE / file).read_text().splitlines()
        if "==" in line
    }
    _say(f"installing {len(pins)} pinned packages ({', '.join(files)})")
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-warn-script-location"]
    for file in files:
        command += ["-r", str(HERE / file)]
    seen = 0
    with LOG.open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            if re.match(r"(Collecting|Requirement already satisfied:) [\w.\[\]-]+==", line):
                seen += 1
                _progress(seen, len(pins), line.split()[-1] if line.startswith("Requirement") else line.split()[1])
            elif line.startswith("Installing collected"):
                _progress(len(pins), len(pins), "unpacking")
    if sys.stdout.isatty():
        print()
    if process.wait() != 0:
        print("".join(LOG.read_text().splitlines(keepends=True)[-12:]), file=sys.stderr)
        _fail(f"the requirements could not be installed; all of pip's output is in {LOG.relative_to(ROOT)}")
        return False
    return True


def _progress(done: int, of: int, what: str) -> None:
    if sys.stdout.isatty():
        print(f"\r  {min(done, of)}/{of} {what[:50]:50}", end="", flush=True)
    elif done % 20 == 0 or done >= of:
        print(f"  {min(done, of)}/{of} {what}", flush=True)


def _has_venv() -> bool:
    # An interrupted `python -m venv`, or an upgrade of the system's Python, leaves one that cannot run.
    return (
        PYTHON.exists() and subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True).returncode == 0
    )


def _has_torch() -> bool:
    pin = (HERE / "torch.txt").read_text().strip().split("==")[1]
    code = "import importlib.metadata as m; print(m.version('torch'))"
    found = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    return found.split("+")[0] == pin


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists()


def _is_installed(name: str, files: list[str]) -> bool:
    # The checks' environment holds everything the service needs.
    extra = [file for file in files if file not in SETS[name]]
    return PYTHON.exists() and any(
        _stamp(candidate).exists()
        and _stamp(candidate).read_text() == _digest([*SETS[candidate], *_triton(candidate), *extra])
        for candidate in {name, "dev"}
    )


def _stamp(name: str) -> Path:
    return VENV / f"installed-{name}"


def _digest(files: list[str]) -> str:
    digest = hashlib.sha256()
    for file in ["torch.txt", *sorted(files)]:
        digest.update((HERE / file).read_bytes())
    return digest.hexdigest()


def _dotenv(name: str) -> str:
    path = ROOT / ".env"
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split("=", 1)[1].strip(" \"'") for line in lines if line.startswith(f"{name}=")), "")


def _say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def _fail(text: str) -> int:
    print(f"setup: {text}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; the next start goes on from here"))
