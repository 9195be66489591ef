"""Which processes make up the service, and the command line of each."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from chatproject.ops.up import lost_leases, probes
from chatproject.ops.up.config import Config
from chatproject.ops.up.process import Spec
from chatproject.ops.up.spare import Spare

# Four times the promised frame size: over its own limit daphne closes the socket without a word, up to it the chat
# socket refuses in words (chat.protocol.MAX_FRAME_BYTES).
_SOCKET_BYTES = 4 * 65536
# Workers here share nothing that gossip would tell them, and mingling delays each start by a second.
_QUIET = ("--without-gossip", "--without-mingle")


def specs(config: Config, *, redis_url: str) -> list[Spec]:
    """Return everything but Redis, in the order of starting."""
    return [
        *_webs(config, redis_url),
        *_workers(config, redis_url),
        _records(config, redis_url),
        _flower(config, redis_url),
    ]


def _webs(config: Config, redis_url: str) -> list[Spec]:
    found = []
    for index in range(config.webs):
        port = config.port + index
        # Twisted's endpoint syntax separates by colons, so those of an IPv6 address are escaped.
        interface = config.host.replace(":", r"\:")
        # The default backlog of 50 refuses bursts of sockets.
        endpoint = f"tcp:port={port}:interface={interface}:backlog=4096"
        command = [sys.executable, "-m", "daphne", "-e", endpoint]
        command += [
            "--websocket-max-message-size",
            str(_SOCKET_BYTES),
            "--websocket-max-frame-size",
            str(_SOCKET_BYTES),
        ]
        if config.is_secure:
            command.append("--proxy-headers")
        found.append(
            Spec(
                role="web",
                name=f"web{index + 1}",
                command=(*command, "chatproject.asgi:application"),
                environment=config.web_environment(redis_url),
                directory=config.root,
                log=_log(config, f"web{index + 1}"),
                probe=probes.http_ok(config.host, port, "/livez"),
                hang_s=30,
                grace_s=15,
            )
        )
    return found


def _workers(config: Config, redis_url: str) -> list[Spec]:
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    found = []
    # Celery reads the name of its pool when it is imported.
    common = config.worker_environment(redis_url) | {"CELERY_CUSTOM_WORKER_POOL": "workers.pool:EnginePool"}
    spare = _spare(config, common) if config.workers and config.has_spare else None
    for number in range(1, config.workers + 1):
        slot = f"w{number}"
        environment = common | {"CHAT_SLOT": slot}
        if gpus > 1 and "CUDA_VISIBLE_DEVICES" not in environment:
            environment["CUDA_VISIBLE_DEVICES"] = str((number - 1) % gpus)
        command = [*_celery("workers.app"), "worker", "--pool=custom", "-c", str(config.slots), *_QUIET]
        found.append(
            Spec(
                role="worker",
                name=f"worker-{slot}",
                command=(*command, "-E", "-n", f"worker{number}@%h", "--loglevel=INFO"),
                environment=environment,
                directory=config.root,
                log=_log(config, f"worker-{slot}"),
                probe=probes.worker_ready(redis_url, slot),
                grace_s=float(environment.get("CHAT_GRACE_S") or 8) + 30,
                is_essential=False,
                spare=spare,
                on_end=functools.partial(lost_leases.mark, redis_url, slot),
            )
        )
    return found


def _spare(config: Config, environment: dict[str, str]) -> Spare:
    command = (sys.executable, "-m", "workers.spare")
    return Spare(command=command, environment=environment, directory=config.root, log=_log(config, "worker-spare"))


def _records(config: Config, redis_url: str) -> Spec:
    command = [*_celery("chatproject.celery"), "worker", "-Q", "records", "--pool=threads", "-c", "4", *_QUIET]
    return Spec(
        role="records",
        name="records",
        command=(*command, "-n", "records@%h", "--loglevel=INFO"),
        environment=config.web_environment(redis_url),
        directory=config.root,
        log=_log(config, "records"),
        probe=probes.celery_answers(redis_url, "records"),
        grace_s=20,
    )


def _flower(config: Config, redis_url: str) -> Spec:
    command = [*_celery("chatproject.celery"), "flower", "--address=127.0.0.1", f"--port={config.flower_port}"]
    # The password goes through the environment: a command line is everybody's to read.
    environment = {**config.web_environment(redis_url), "FLOWER_BASIC_AUTH": f"flower:{config.flower_password}"}
    # Flower has counters of its own, which are not the service's.
    del environment["PROMETHEUS_MULTIPROC_DIR"]
    return Spec(
        role="flower",
        name="flower",
        command=(*command, "--read_only=True"),
        environment=environment,
        directory=config.root,
        log=_log(config, "flower"),
        probe=probes.http_ok("127.0.0.1", config.flower_port, "/healthcheck"),
        hang_s=60,
        grace_s=5,
    )


def _celery(app: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", app]


def _log(config: Config, name: str) -> Path:
    return config.var / "log" / f"{name}.log"
