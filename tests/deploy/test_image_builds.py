"""Both Dockerfiles are really built, without a Docker engine: buildah in a chroot, on a base made by mmdebstrap.

The base stands in for the named one: Debian's own Python, so its version differs. The machine's pip settings hold
inside too, as behind a company's mirror.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = re.findall(r"^FROM (\S+)$", (ROOT / "Dockerfile.web").read_text(), re.MULTILINE)[-1]
BASE_PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"

pytestmark = [pytest.mark.needs("root", "buildah"), pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Builder:
    """buildah with images of its own, thrown away afterwards."""

    directory: Path
    mounts: list[str]

    def run(self, *arguments: str) -> str:
        """Run one command of buildah; return what it printed."""
        storage = ["--root", str(self.directory / "images"), "--runroot", str(self.directory / "run")]
        done = subprocess.run(
            ["buildah", *storage, "--storage-driver", "vfs", *arguments], cwd=ROOT, capture_output=True, text=True,
            check=False, env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout.strip()

    def build(self, name: str, **arguments: str) -> str:
        """Build a Dockerfile; return the name of a container made of its image."""
        given = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        tag = name.lower().replace(".", "-")
        self.run("bud", "--pull-never", *self.mounts, *given, "-f", name, "-t", tag, ".")
        return self.run("from", "--pull-never", tag)

    def inside(self, container: str, *command: str) -> str:
        """Run a command in a container, as its own user."""
        return self.run("run", container, "--", *command)


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    directory = Path(tempfile.mkdtemp(prefix="chat-images-"))
    try:
        tar = directory / "base.tar"
        subprocess.run(
            ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", str(tar)],
            check=True, capture_output=True,
        )  # fmt: skip
        builder = Builder(directory=directory, mounts=_pip_settings(directory))
        base = builder.run("from", "scratch")
        builder.run("add", "--quiet", base, str(tar), "/")
        tar.unlink()
        builder.run("commit", "--quiet", "--rm", base, f"docker.io/library/{BASE}")
        yield builder
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_the_web_image_serves_without_torch(builder: Builder) -> None:
    web = builder.build("Dockerfile.web")
    assert builder.inside(web, "id", "-u") == "10001"
    check = "python manage.py check && python -c 'import importlib.util as u; assert not u.find_spec(\"torch\")'"
    builder.inside(web, "env", "SECRET_KEY=" + "k" * 50, "sh", "-c", check)


def test_the_gpu_image_holds_an_engine_and_nothing_of_the_web_side(builder: Builder) -> None:
    index = os.environ.get("TORCH_INDEX", "")
    gpu = builder.build("Dockerfile.gpu", **({"TORCH_INDEX": index} if index else {}))
    assert builder.inside(gpu, "id", "-u") == "10001"
    script = (
        "import importlib.util as u, torch, transformers, workers.app\n"
        "from workers.demo_model.evaluate import Speaker\n"
        "assert not u.find_spec('chatproject.settings')\n"  # Django itself comes with the channel layer.
        "print(Speaker().answer([[{'role': 'user', 'content': 'Tell me about Mars'}]])[0])"
    )
    assert builder.inside(gpu, "python", "-c", script).splitlines()[-1].startswith("**Mars** is the fourth planet")


def _pip_settings(directory: Path) -> list[str]:
    """Return the options that show a build this machine's pip settings, and the folders that they name."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    settings = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    file = directory / "pip.conf"
    file.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items()), ""]))
    words = [word for value in settings.values() for word in value.split()]
    # The pages of a local index point beside it.
    named = {Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word) for word in words}
    mounted = {file: Path("/etc/pip.conf")} | {path: path for path in named if path.is_absolute() and path.exists()}
    return [word for here, there in mounted.items() for word in ("--volume", f"{here}:{there}:ro")]
