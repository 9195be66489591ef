"""The worker's environment, read once at start. It needs Redis and a model, nothing else."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast, get_args

from chatproject.contract import names

GPTQBackend = Literal["auto", "dense", "int4", "packed"]
BUNDLED_MODEL: Final = Path(__file__).resolve().parent / "demo_model" / "weights"


class BadConfig(ValueError):
    """A variable has a value that cannot be used; the text says which and what to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What one worker process is."""

    redis_url: str
    slot: str  # stays over restarts: w1, w2, ... or the host's name
    boot: str  # this process
    model: str  # directory or hub id
    slug: str  # names the queue and the model of the API
    device: str  # auto, cpu, cuda, cuda:<n>
    gptq_backend: GPTQBackend  # see workers/model/loader.py
    engine: Literal["torch", "fake"]
    fake_step_ms: float
    slots: int  # generations at once
    grace_s: float  # to finish what runs at SIGTERM, before the rest is handed back
    flush_ms: float  # a stream's frames are at least this far apart, after the first
    step_tokens: int  # token budget of one engine step


def read(environ: Mapping[str, str] | None = None) -> Config:
    """Read the environment. Raises BadConfig."""
    environ = os.environ if environ is None else environ
    engine = environ.get("CHAT_ENGINE") or "torch"
    if engine not in ("torch", "fake"):
        raise BadConfig(f"CHAT_ENGINE={engine!r} must be torch or fake")
    backend = environ.get("CHAT_GPTQ_BACKEND") or "auto"
    if backend not in get_args(GPTQBackend):
        raise BadConfig(f"CHAT_GPTQ_BACKEND={backend!r} must be auto, dense, int4 or packed")
    model = environ.get("CHAT_MODEL") or str(BUNDLED_MODEL)
    slug = environ.get("CHAT_MODEL_SLUG") or ("demo" if not environ.get("CHAT_MODEL") else names.model_slug(model))
    if not names.is_model_slug(slug):
        raise BadConfig(f"CHAT_MODEL_SLUG={slug!r} may hold a-z 0-9 . _ - and at most 63 of them")
    return Config(
        redis_url=_secret(environ, "REDIS_URL") or "redis://127.0.0.1:6379/0",
        slot=environ.get("CHAT_SLOT") or socket.gethostname().split(".")[0],
        boot=secrets.token_hex(4),
        model=model,
        slug=slug,
        device=environ.get("CHAT_DEVICE") or "auto",
        gptq_backend=cast(GPTQBackend, backend),
        engine="fake" if engine == "fake" else "torch",
        fake_step_ms=_number(environ, "CHAT_FAKE_STEP_MS", 20.0),
        slots=int(_number(environ, "CHAT_SLOTS", 32, least=1)),
        grace_s=_number(environ, "CHAT_GRACE_S", 8.0),
        flush_ms=_number(environ, "CHAT_FLUSH_MS", 55.0),
        step_tokens=int(_number(environ, "CHAT_STEP_TOKENS", 256, least=16)),
    )


def _number(environ: Mapping[str, str], name: str, default: float, *, least: float = 0) -> float:
    text = environ.get(name) or ""
    try:
        value = float(text) if text else default
    except ValueError as error:
        raise BadConfig(f"{name}={text!r} is not a number") from error
    if value < least:
        raise BadConfig(f"{name}={text} is too small: at least {least:g}")
    return value


def _secret(environ: Mapping[str, str], name: str) -> str:
    if environ.get(name):
        return environ[name]
    path = environ.get(f"{name}_FILE")
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadConfig(f"{name}_FILE={path} cannot be read: {error.strerror}") from error
