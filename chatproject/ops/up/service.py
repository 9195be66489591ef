"""`make run`: what is started in which order, what is said, and how it ends. The one file that puts `up` together."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable

from django.core.management import call_command
from django.db import connections

from chatproject.generations import catalogue
from chatproject.ops.up import ports, processes, redis_server, state_file, table, users
from chatproject.ops.up.config import Config
from chatproject.ops.up.errors import StopRequested
from chatproject.ops.up.stop_signals import StopSignals
from chatproject.ops.up.supervisor import Supervisor

_OPEN_FILES = 65536  # a socket is a file; soft limits of 1,024 are common


def run(config: Config, *, say: Callable[[str], None]) -> None:
    """Run the service until a signal asks to stop. Raises UpError when it cannot start; nothing is left behind then."""
    with state_file.only_one(config.var / "up.lock"), StopSignals() as signals:
        state_path = config.var / "up.json"
        state_path.unlink(missing_ok=True)  # of one that was killed
        # Counters of processes that are gone would be added to those of the living.
        shutil.rmtree(config.var / "metrics", ignore_errors=True)
        ports.check(config)
        _raise_file_limit()
        began_at = time.monotonic()
        supervisor = Supervisor(signals, say=say)
        try:
            redis = redis_server.choose(url=config.redis_url, var=config.var)
            if redis.spec is not None:
                supervisor.start([redis.spec])
            say("preparing the database")
            call_command("migrate", interactive=False, verbosity=0)
            catalogue.ensure_model(make_default=True)
            # Before anybody is told that it is ready: who signs in then must be known.
            passwords = users.ensure(config.demo_password)
            connections.close_all()
            try:
                supervisor.start(processes.specs(config, redis_url=redis.url))
            except BaseException:
                if passwords:
                    say(table.shown_once(passwords))  # the next start will not know them
                raise

            def keep_state() -> None:
                state_file.write(state_path, _state(config, redis.url, supervisor))

            keep_state()
            say(f"ready after {time.monotonic() - began_at:.1f} s")
            say(table.render(config, redis, passwords=passwords, missing=supervisor.not_ready()))
            supervisor.watch(keep_state)
        except StopRequested:
            say("stopping before everything was ready")
        finally:
            # First of all: nobody is to take addresses from it that are about to close.
            state_path.unlink(missing_ok=True)
            supervisor.stop()
        say("stopped")


def _state(config: Config, redis_url: str, supervisor: Supervisor) -> state_file.State:
    return state_file.State(
        url=table.url_of(config.host, config.port),
        flower=table.url_of("127.0.0.1", config.flower_port),
        redis=redis_url,
        database=config.database_url or f"sqlite:///{config.var / 'chatproject.sqlite3'}",
        processes=supervisor.pids(),
    )


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
