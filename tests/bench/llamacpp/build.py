"""Build llama.cpp, as llama-cpp-python, into ``var/peers``. Takes 10 to 25 minutes on 2 cores; never done in CI.

An environment of its own: what the peer needs is none of our dependencies.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve()
DIRECTORY: Final = _HERE.parents[3] / "var" / "peers"
PYTHON: Final = DIRECTORY / "bin" / "python"
_PINS: Final = _HERE.with_name("requirements.txt")


class PeerNotBuilt(ImportError):
    """The peer must be built before it can be measured."""

    def __init__(self) -> None:
        super().__init__("llama.cpp is not built", name="llama.cpp (`make bench-peers` builds it)")


def build() -> None:
    """Make the environment if it is not there. Raises CalledProcessError when no compiler or no network is."""
    if is_built():
        return
    print(f"bench-peers: building llama.cpp in {DIRECTORY.relative_to(_HERE.parents[3])}; this takes 10 to 25 minutes.")
    subprocess.run([sys.executable, "-m", "venv", DIRECTORY], check=True)
    # Compiled for this processor, as its own users compile it; without the server and the tools, which nobody runs.
    options = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_BUILD_TOOLS=OFF -DLLAVA_BUILD=OFF"}
    environment = options | {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())} | os.environ
    command = [PYTHON, "-m", "pip", "install", "--no-binary", "llama-cpp-python", "-r", _PINS]
    subprocess.run(command, check=True, env=environment)


def is_built() -> bool:
    """Say whether the peer can be imported there."""
    if not PYTHON.exists():
        return False
    return not subprocess.run([PYTHON, "-c", "import gguf, llama_cpp"], capture_output=True).returncode
