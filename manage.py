#!/usr/bin/env python
"""Django's command line, and ours: up, user, plan, apikey, chaos."""

import os
import sys


def main() -> None:
    """Run one command."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")
    from django.core.management import execute_from_command_line

    from chatproject.env import BadEnvironment

    try:
        execute_from_command_line(sys.argv)
    except BadEnvironment as error:
        sys.exit(f"{error}. The variables are explained in .env.example.")


if __name__ == "__main__":
    main()
