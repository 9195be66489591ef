"""`manage.py chaos`: break things on purpose and check the invariants. Starts `tests.chaos`, a part of the checkout."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    """Hand over to the harness."""

    help = "Break things on purpose and check the invariants (needs the checkout's tests/)."

    def run_from_argv(self, argv: list[str]) -> None:
        """Leave every option to the harness, `--help` too."""
        try:
            self.handle(*argv[2:])
        except CommandError as error:
            sys.exit(f"{error}")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run `python -m tests.chaos`; its status is ours."""
        if not (settings.BASE_DIR / "tests" / "chaos" / "__main__.py").is_file():
            raise CommandError("There is no chaos harness in this checkout yet (tests/chaos).")
        command = [sys.executable, "-m", "tests.chaos", *args]
        sys.exit(subprocess.run(command, cwd=settings.BASE_DIR, check=False).returncode)
