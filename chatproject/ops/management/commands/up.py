"""`manage.py up`: start everything, keep it running, stop it in order."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from chatproject import env
from chatproject.ops.up import service
from chatproject.ops.up.config import Config
from chatproject.ops.up.errors import UpError


class Command(BaseCommand):
    """Starts web, workers, records, Flower and Redis under one supervisor."""

    help = "Start everything, restart what dies, stop in order at Ctrl-C."
    requires_system_checks = ()  # the web processes run them, and the start waits for those

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until stopped."""
        try:
            service.run(Config.read(env.read(), root=env.ROOT), say=_say)
        except (UpError, env.BadEnvironment) as error:
            raise CommandError(str(error)) from error


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:
        # The terminal is gone (SIGHUP): go on stopping in order.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
