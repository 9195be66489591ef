"""What `up` was asked to start: the environment of `chatproject.env`, typed, with the secrets it keeps in var/."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chatproject import env

# What only the Django side may see; the workers get Redis and the model, nothing else.
_WEB_ONLY = ("SECRET_KEY", "DATABASE_URL", "CHAT_DEMO_PASSWORD", "FLOWER_PASSWORD", "METRICS_TOKEN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything `up` reads from outside, once."""

    root: Path
    var: Path
    host: str
    port: int  # of the first web process
    webs: int
    workers: int
    slots: int  # generations one worker runs at once
    has_spare: bool  # keep an imported process for the worker that dies
    flower_port: int
    redis_url: str  # empty: find or start one
    database_url: str  # empty: SQLite in var/
    model: str  # empty: the bundled one
    secret_key: str
    flower_password: str
    demo_password: str  # empty: random, printed once
    is_secure: bool  # behind HTTPS: forwarded headers are trusted
    values: Mapping[str, str]  # every variable as text

    @classmethod
    def read(cls, values: Mapping[str, str], *, root: Path) -> Config:
        """Read the values of `env.read()`. Raises BadEnvironment. Makes var/ and the secrets in it."""
        var = root / "var"
        for directory in (var, var / "log", var / "static"):
            directory.mkdir(exist_ok=True)
        # Conversations, keys and logs lie below.
        var.chmod(0o700)
        return cls(
            root=root,
            var=var,
            host=values["HOST"],
            port=_port(values, "PORT"),
            webs=env.integer(values, "WEBS", least=1),
            workers=env.integer(values, "WORKERS"),
            has_spare=values["WORKER_SPARE"] == "1",
            slots=env.integer(values, "CHAT_SLOTS", least=1),
            flower_port=_port(values, "FLOWER_PORT"),
            redis_url=values["REDIS_URL"],
            database_url=values["DATABASE_URL"],
            model=values["CHAT_MODEL"],
            secret_key=values["SECRET_KEY"] or kept_secret(var / "secret_key"),
            flower_password=values["FLOWER_PASSWORD"] or kept_secret(var / "flower_password", length=12),
            demo_password=values["CHAT_DEMO_PASSWORD"],
            is_secure=values["SECURE"] == "1",
            values=values,
        )

    def web_environment(self, redis_url: str) -> dict[str, str]:
        """Return the environment of web, records and Flower."""
        return {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "chatproject.settings",
            "REDIS_URL": redis_url,
            "SECRET_KEY": self.secret_key,
            # Where the counters of all web and records processes are added up.
            "PROMETHEUS_MULTIPROC_DIR": str(self.var / "metrics"),
        }

    def worker_environment(self, redis_url: str) -> dict[str, str]:
        """Return the environment of a worker: no Django, no database, no secret of the web side."""
        hidden = {"DJANGO_SETTINGS_MODULE", "REDIS_URL_FILE", *_WEB_ONLY, *(f"{name}_FILE" for name in _WEB_ONLY)}
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        # What .env says reaches a worker only through here; some of it only a worker knows.
        dotenv = self.root / ".env"
        chat = {**(env.read_dotenv(dotenv) if dotenv.is_file() else {}), **self.values, **inherited}
        chat = {
            name: value for name, value in chat.items() if name.startswith("CHAT_") and name not in hidden and value
        }
        return {**inherited, **chat, "PYTHONUNBUFFERED": "1", "REDIS_URL": redis_url}


def kept_secret(path: Path, *, length: int = 50) -> str:
    """Return the secret in ``path``, made at the first call; only its owner may read it."""
    try:
        found = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        found = ""
    if found:
        return found
    made = random_password(length)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(made + "\n")
    return made


def random_password(length: int = 14) -> str:
    """Return letters and digits that cannot be mistaken for each other when typed."""
    return "".join(secrets.choice("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(length))


def _port(values: Mapping[str, str], name: str) -> int:
    port = env.integer(values, name, least=1)
    if port > 65535:
        raise env.BadEnvironment(f"{name}={port} is no port: at most 65535")
    return port
