"""Of a web process: what it loads is loaded before it listens, and is not looked through again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from chatproject.garbage import THRESHOLDS
from tests.service import ROOT

LOADED = """
import gc, json, sys
import chatproject.asgi
print(json.dumps([gc.get_freeze_count(), gc.get_threshold(), len(gc.get_objects()), sorted(sys.modules)]))
"""
REQUEST = """
from django.test import Client
before = set(sys.modules)
status = Client().get("/accounts/login/", headers={"host": "localhost"}).status_code
print(json.dumps([status, sorted(name for name in set(sys.modules) - before if name.startswith("chatproject."))]))
"""


def _run(script: str) -> list[object]:
    environment = {**os.environ, "SECRET_KEY": "x" * 50, "ALLOWED_HOSTS": "localhost"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_what_a_web_process_has_loaded_is_left_out_of_every_look_for_garbage() -> None:
    frozen, thresholds, young, modules = _run(LOADED)
    assert thresholds == list(THRESHOLDS)
    assert isinstance(frozen, int)
    assert isinstance(young, int)
    assert frozen > 50_000
    assert young < frozen / 20
    assert isinstance(modules, list)
    assert {"chatproject.api.openai", "chatproject.chat.views", "chatproject.chat.consumers"} <= set(modules)


def test_the_first_request_loads_nothing_of_ours() -> None:
    status, loaded = _run(LOADED + REQUEST)
    assert status == 200
    assert loaded == []
