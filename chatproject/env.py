"""The environment, read once: every variable of the web side, with its default and what it is for.

A secret may come from a file: ``SECRET_KEY_FILE=/run/secrets/key`` is read when ``SECRET_KEY`` is not set.
Knows no Django. `.env` in the project's root fills what the environment leaves open.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent


class BadEnvironment(ValueError):
    """A variable has a value that cannot be used; the text says which and what to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One variable: its default (as text) and its purpose. A secret may also come as ``NAME_FILE``."""

    default: str
    purpose: str
    is_secret: bool = False


VARIABLES: Final[dict[str, Variable]] = {
    "HOST": Variable(default="127.0.0.1", purpose="address the web processes listen on"),
    "PORT": Variable(default="8000", purpose="port of the first web process; the next take PORT + 1, ..."),
    "WEBS": Variable(default="1", purpose="web processes"),
    "WORKERS": Variable(default="1", purpose="workers, each one engine; 0 is allowed"),
    "WORKER_SPARE": Variable(
        default="1",
        purpose="1: `make run` keeps an idle process that takes a dead worker's place at once, for its memory",
    ),
    "FLOWER_PORT": Variable(default="5555", purpose="port of Flower, on loopback"),
    "SECRET_KEY": Variable(
        default="", purpose="Django's secret; `make run` makes one in var/ when empty", is_secret=True
    ),
    "ALLOWED_HOSTS": Variable(default="", purpose="host names served beside loopback and HOST, with commas"),
    "TRUSTED_ORIGINS": Variable(
        default="", purpose="full origins (https://chat.example.org) a page may come from, with commas"
    ),
    "DATABASE_URL": Variable(
        default="", purpose="postgres://user:password@host/name; empty: SQLite in var/", is_secret=True
    ),
    "REDIS_URL": Variable(
        default="", purpose="redis://host:port/0; empty: `make run` finds or starts a server", is_secret=True
    ),
    "SIGNUP": Variable(default="open", purpose="open or closed: may people make their own account"),
    "METRICS_TOKEN": Variable(default="", purpose="bearer token for /metrics from other machines", is_secret=True),
    "CHAT_MODEL": Variable(default="", purpose="model directory or hub id; empty: the bundled demo model"),
    "CHAT_DEVICE": Variable(default="auto", purpose="auto, cpu, cuda or cuda:<n>"),
    "CHAT_ENGINE": Variable(default="torch", purpose="torch, or fake: a deterministic engine without a model"),
    "CHAT_FAKE_STEP_MS": Variable(default="20", purpose="milliseconds per step of the fake engine"),
    "CHAT_SLOTS": Variable(default="32", purpose="generations one worker runs at once"),
    "CHAT_DEMO_PASSWORD": Variable(
        default="",
        purpose="password of demo and admin, set at every start; empty: random, shown once",
        is_secret=True,
    ),
    "QUEUE_MAX_WAIT_S": Variable(
        default="600",
        purpose="seconds a message waits for a worker before it expires; one that has half of it before it is refused",
    ),
    "QUEUE_MAX_WAITING": Variable(
        default="10000",
        purpose="messages that may wait for one model; more are refused, however many workers there are",
    ),
    "QUEUE_MAX_WAITING_PER_USER": Variable(
        default="1000", purpose="unanswered messages one user may have for one model"
    ),
    "FLOWER_PASSWORD": Variable(
        default="", purpose="password of Flower's user flower; empty: random, kept in var/", is_secret=True
    ),
    "DEBUG": Variable(default="0", purpose="1: Django's debug pages; never in production"),
    "SECURE": Variable(default="0", purpose="1: behind HTTPS: secure cookies, HSTS, forwarded headers trusted"),
    "TORCH_INDEX": Variable(
        default="", purpose="package index with a CPU build of torch, for `make setup` without a GPU"
    ),
}


def read(environ: Mapping[str, str] | None = None, dotenv: Path | None = ROOT / ".env") -> dict[str, str]:
    """Return every variable's value as text: the environment first, then NAME_FILE, then .env, then the default.

    Raises BadEnvironment when a secret file cannot be read.
    """
    environ = os.environ if environ is None else environ
    file_values = read_dotenv(dotenv) if dotenv is not None and dotenv.is_file() else {}
    values: dict[str, str] = {}
    for name, variable in VARIABLES.items():
        for source in (environ, file_values):
            if source.get(name):
                values[name] = source[name]
                break
            if variable.is_secret and source.get(f"{name}_FILE"):
                values[name] = _secret(name, source[f"{name}_FILE"])
                break
        else:
            values[name] = variable.default
    return values


def read_dotenv(path: Path) -> dict[str, str]:
    """Return what a `.env` file says: NAME=value lines; others are comments."""
    values: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.lstrip().startswith("#"):
            values[name.strip().removeprefix("export ")] = value.strip().strip("\"'")
    return values


def integer(values: Mapping[str, str], name: str, *, least: int = 0) -> int:
    """Return a whole number. Raises BadEnvironment when it is none, or below ``least``."""
    try:
        number = int(values[name])
    except ValueError as error:
        raise BadEnvironment(f"{name}={values[name]!r} is not a whole number") from error
    if number < least:
        raise BadEnvironment(f"{name}={number} is too small: at least {least}")
    return number


def choice(values: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """Return one of ``allowed``. Raises BadEnvironment otherwise."""
    if values[name] not in allowed:
        raise BadEnvironment(f"{name}={values[name]!r} must be one of {', '.join(allowed)}")
    return values[name]


def _secret(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadEnvironment(f"{name}_FILE={path} cannot be read: {error.strerror}") from error
