"""What can be said of compose.yaml and the Dockerfiles without an engine: schema, linters, and what is copied."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatproject import env

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILES = ("Dockerfile.web", "Dockerfile.gpu")


def tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def final_stage(name: str) -> str:
    return (ROOT / name).read_text().replace("\\\n", " ").rsplit("\nFROM ", 1)[1]


def copied(name: str) -> set[str]:
    """Sources that the final stage takes from the checkout."""
    found: set[str] = set()
    for line in re.findall(r"^COPY (.+)$", final_stage(name), re.MULTILINE):
        if "--from=" not in line:
            found.update(shlex.split(line)[:-1])
    return found


def test_compose_follows_its_schema() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(ROOT / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.needs("hadolint")
@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_linter_finds_nothing(name: str) -> None:
    done = subprocess.run([tool("hadolint"), str(ROOT / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_gpu_image_holds_the_contract_and_the_workers_alone() -> None:
    assert copied("Dockerfile.gpu") == {"chatproject/__init__.py", "chatproject/contract", "workers"}


def test_the_web_image_holds_no_code_of_the_workers() -> None:
    ours = {source for source in copied("Dockerfile.web") if source.startswith("workers")}
    assert ours == {"workers/demo_model/weights/*.json"}
    assert "torch" not in (ROOT / "requirements" / "web.txt").read_text()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there_and_not_ignored(name: str) -> None:
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for source in copied(name):
        assert list(ROOT.glob(source)), source
        assert any(source == entry or source.startswith(f"{entry}/") for entry in let_in), source


def as_in_the_image(name: str, directory: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python over what the image holds of the checkout, and nothing else of it."""
    for source in copied(name):
        for path in ROOT.glob(source):
            target = directory / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__", "weights"))
            else:
                shutil.copy2(path, target)
    environment = {"PATH": os.environ["PATH"], "CHAT_ENGINE": "fake"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


def test_a_worker_starts_from_what_its_image_holds(tmp_path: Path) -> None:
    code = """
import sys, workers.app, workers.tasks, workers.pool, workers.runtime
ours = {name for name in sys.modules if name.startswith("chatproject.")}
assert all(name.startswith("chatproject.contract") for name in ours), ours
"""
    done = as_in_the_image("Dockerfile.gpu", tmp_path, code)
    assert done.returncode == 0, done.stderr


def test_the_web_side_starts_from_what_its_image_holds_without_torch(tmp_path: Path) -> None:
    code = """
import sys, chatproject.asgi, chatproject.celery, chatproject.urls
assert "torch" not in sys.modules and "transformers" not in sys.modules
assert not any(name.startswith("workers") for name in sys.modules)
"""
    done = as_in_the_image("Dockerfile.web", tmp_path, code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_pinned_and_run_as_nobody_special(name: str) -> None:
    text = (ROOT / name).read_text()
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert re.search(r":\d+\.\d+\.\d+-", image), f"{image} is not pinned to a patch release"
    assert re.search(r"^USER 10001:10001$", final_stage(name), re.MULTILINE)
    assert "HEALTHCHECK" in final_stage(name)


def test_both_profiles_hold_the_whole_service() -> None:
    common = {"redis", "postgres", "migrate", "web", "records", "flower"}
    for profile in ("cpu", "gpu"):
        names = {name for name, service in SERVICES.items() if profile in service["profiles"]}
        assert names == common | {f"worker-{profile}"}


def test_workers_see_neither_the_database_nor_a_secret_of_the_web_side() -> None:
    secrets = {name for name, variable in env.VARIABLES.items() if variable.is_secret} - {"REDIS_URL"}
    for name in ("worker-cpu", "worker-gpu"):
        assert not secrets & {key.removesuffix("_FILE") for key in SERVICES[name]["environment"]}
        assert not SERVICES[name].get("secrets")


def test_services_wait_for_what_they_need_and_are_given_time_to_stop() -> None:
    for name in ("web", "records", "flower"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    for name, service in SERVICES.items():
        if name == "migrate":
            continue
        assert "stop_grace_period" in service, name
        dockerfile = service.get("build", {}).get("dockerfile")
        assert "healthcheck" in service or (dockerfile and "HEALTHCHECK" in final_stage(dockerfile)), name
        assert re.search(r":\d+\.\d+", service["image"]) or "build" in service, f"{name}: pin {service['image']}"


def test_redis_keeps_what_waits() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "appendonly yes" in command
    assert "noeviction" in command
    assert SERVICES["redis"]["volumes"]


def test_only_web_and_flower_listen_on_the_host_and_on_loopback_by_default() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {
        "web": ["${HOST:-127.0.0.1}:${PORT:-8000}:8000"],
        "flower": ["127.0.0.1:${FLOWER_PORT:-5555}:5555"],
    }
