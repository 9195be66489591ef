"""`manage.py apikey create --user NAME [--scope ...]`: prints the key alone, once."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from chatproject.accounts import keys
from chatproject.accounts.errors import Refused
from chatproject.accounts.models import User


class Command(BaseCommand):
    """Makes API keys."""

    help = "Make an API key and print it, this once; only its digest is kept."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the promised arguments."""
        parser.add_argument("action", choices=["create"])
        parser.add_argument("--user", required=True, metavar="NAME", help="whom the key acts as")
        parser.add_argument("--name", default="command line", help="to tell keys apart")
        parser.add_argument(
            "--scope", action="extend", nargs="+", default=[], help=f"of {', '.join(keys.SCOPES)}; none: everything"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the key and nothing else, so that a script can take it."""
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['user']!r}. Make one with: manage.py user create")
        if not user.is_active:
            raise CommandError(f"The user {options['user']!r} is disabled; enable the account first.")
        try:
            _, plaintext = keys.create(user=user, name=options["name"], scopes=options["scope"])
        except Refused as refused:
            raise CommandError(refused.message) from refused
        self.stdout.write(plaintext)
