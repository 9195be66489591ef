"""`make setup`: says what it needs, what will come and how much, and does nothing when nothing changed.

The environment's python is a stand-in that notes how it was called: no package is installed here.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
PYTHON = """#!/bin/sh
echo "$@" >>"{root}/calls"
case "$*" in
    *metadata*) cat "{root}/torch-version" 2>/dev/null ;;
    *--dry-run*) cat "{root}/report" ;;
    *-r*) echo "Collecting Django==5.2.19 (from -r web.txt)"; exit "$(cat "{root}/status" 2>/dev/null || echo 0)" ;;
esac
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON.format(root=tmp_path))
    python.chmod(0o755)
    spec = importlib.util.spec_from_file_location("install_under_test", tmp_path / "requirements" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    monkeypatch.setattr(module, "_has_gpu", lambda: False)
    report(tmp_path, "torch")
    return module


def report(root: Path, *packages: str) -> None:
    (root / "report").write_text(json.dumps({"install": [{"metadata": {"name": name}} for name in packages]}))


def calls(root: Path) -> list[str]:
    path = root / "calls"
    return path.read_text().splitlines() if path.exists() else []


def run(module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["install.py", name])
    status: int = module.main()
    return status


def test_torch_comes_first_and_alone_then_the_pins(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(install, "run", monkeypatch) == 0
    installs = [call for call in calls(tmp_path) if " install " in call and "--dry-run" not in call]
    assert "torch==" in installs[0]
    assert "-r" not in installs[0]
    assert "web.txt" in installs[1]
    assert "gpu.txt" in installs[1]


def test_a_second_start_installs_nothing(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(install, "run", monkeypatch) == 0
    (tmp_path / "calls").unlink()
    assert run(install, "run", monkeypatch) == 0
    assert calls(tmp_path) == []


def test_a_changed_pin_is_installed(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(install, "run", monkeypatch) == 0
    (tmp_path / "torch-version").write_text((tmp_path / "requirements" / "torch.txt").read_text().split("==")[1])
    (tmp_path / "calls").unlink()
    with (tmp_path / "requirements" / "web.txt").open("a") as file:
        file.write("another==1.0\n")
    assert run(install, "run", monkeypatch) == 0
    assert any("web.txt" in call for call in calls(tmp_path))
    assert not any("torch==" in call for call in calls(tmp_path))  # the right one is there


def test_the_checks_environment_runs_the_service_too(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(install, "dev", monkeypatch) == 0
    (tmp_path / "calls").unlink()
    assert run(install, "run", monkeypatch) == 0
    assert calls(tmp_path) == []


def test_gigabytes_are_announced_with_the_way_around(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report(tmp_path, "torch", "nvidia-cublas")
    assert run(install, "run", monkeypatch) == 0
    said = capsys.readouterr().out
    assert "3 GB to download" in said
    assert "TORCH_INDEX=" in said


def test_the_cpu_index_is_used_where_no_gpu_is_seen(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_INDEX", "https://example.org/cpu")
    assert run(install, "run", monkeypatch) == 0
    assert any("--index-url https://example.org/cpu" in call for call in calls(tmp_path))
    shutil.rmtree(tmp_path / "var")
    (tmp_path / "calls").unlink()
    (tmp_path / ".venv" / "installed-run").unlink()
    monkeypatch.setattr(install, "_has_gpu", lambda: True)
    assert run(install, "run", monkeypatch) == 0
    assert not any("--index-url" in call for call in calls(tmp_path))


def test_a_redis_from_a_wheel_comes_only_where_no_server_is(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = {"redis-server": "/usr/bin/redis-server"}
    monkeypatch.setattr(install.shutil, "which", which.get)
    assert run(install, "run", monkeypatch) == 0
    assert not any("redis.txt" in call for call in calls(tmp_path))
    which.clear()
    assert run(install, "run", monkeypatch) == 0
    assert any("redis.txt" in call for call in calls(tmp_path))


def test_a_failed_install_says_where_the_reason_is_and_is_tried_again(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "status").write_text("1")
    assert run(install, "run", monkeypatch) == 1
    assert ".venv/install.log" in capsys.readouterr().err
    (tmp_path / "status").write_text("0")
    assert run(install, "run", monkeypatch) == 0


def test_an_old_python_is_a_clear_sentence(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install.sys, "version_info", (3, 9, 2))
    assert run(install, "run", monkeypatch) == 1
    assert "Python 3.9.2 is too old: 3.11 or newer is needed" in capsys.readouterr().err


def test_a_python_without_venv_is_a_clear_sentence(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / ".venv")
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda _name: None)
    assert run(install, "run", monkeypatch) == 1
    assert f"apt-get install python3.{sys.version_info[1]}-venv" in capsys.readouterr().err


def test_pins_hold_no_torch_no_cuda_and_no_index() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        for line in path.read_text().lower().splitlines():
            if path.name not in ("torch.txt", "triton.txt"):  # each installed by itself, and only where it belongs
                assert not line.startswith(("torch", "nvidia", "triton", "cuda")), f"{path.name}: {line}"
            assert "://" not in line
            assert line.startswith("#") or "==" in line


def test_all_environments_agree_on_every_version() -> None:
    pins: dict[str, str] = {}
    for path in (ROOT / "requirements").glob("*.txt"):
        for line in path.read_text().splitlines():
            if "==" in line:
                name, version = line.split(" ")[0].split("==")
                assert pins.setdefault(name, version) == version, f"{path.name}: {name}; run `make pins`"
