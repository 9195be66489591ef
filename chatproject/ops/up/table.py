"""The one table of addresses that a start ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from chatproject.ops.up.config import Config
from chatproject.ops.up.redis_server import RedisChoice, without_password


def url_of(host: str, port: int) -> str:
    """Return the address to open in a browser."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - shown, not bound
    return f"http://[{shown}]:{port}" if ":" in shown and not shown.startswith("[") else f"http://{shown}:{port}"


def render(config: Config, redis: RedisChoice, *, passwords: Mapping[str, str], missing: Sequence[str]) -> str:
    """Return the table. ``missing`` names the workers that are not ready."""
    web = url_of(config.host, config.port)
    more = f" (and ports to {config.port + config.webs - 1})" if config.webs > 1 else ""
    workers = (
        f"{config.workers} worker{'' if config.workers == 1 else 's'}" if config.workers else "no worker: messages wait"
    )
    is_fake = config.values["CHAT_ENGINE"] == "fake"
    model = "none: the fake engine" if is_fake else config.model or "the bundled demo model"
    flower = "" if config.values["FLOWER_PASSWORD"] else ", password in var/flower_password"
    rows = [
        ("Chat", f"{web}/{more}"),
        ("Settings", f"{web}/settings"),
        ("API", f"{web}/v1"),
        ("Admin", f"{web}/admin/"),
        ("Flower", f"http://127.0.0.1:{config.flower_port}/   user flower{flower}"),
        ("Redis", f"{without_password(redis.url)}   {redis.origin}"),
        ("Database", _database(config)),
        ("Model", f"{model}, {workers}"),
    ]
    lines = ["", *(f"  {name:9} {value}" for name, value in rows)]
    if passwords:
        lines += ["", shown_once(passwords)]
    if missing:
        lines += [
            "",
            f"  Not ready: {', '.join(missing)}. Messages wait until it is; var/log/{missing[0]}.log says why.",
        ]
    return "\n".join([*lines, "", "  Logs are in var/log. Ctrl-C stops everything.", ""])


def shown_once(passwords: Mapping[str, str]) -> str:
    """Return the part of the table with the passwords of new users."""
    lines = ["  Users made just now; their passwords are shown this once:"]
    return "\n".join([*lines, *(f"    {name:7} {password}" for name, password in passwords.items())])


def _database(config: Config) -> str:
    if not config.database_url:
        return "SQLite, var/chatproject.sqlite3"
    parts = urlsplit(config.database_url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}" if parts.hostname else config.database_url
