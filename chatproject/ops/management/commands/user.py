"""`manage.py user create NAME --password P [--plan PLAN] [--staff]`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import Group, Permission
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import IntegrityError, transaction

from chatproject.accounts.models import Plan, User

OPERATORS = "operators"
_APPS = ("accounts", "generations", "chat")


class Command(BaseCommand):
    """Makes accounts."""

    help = "Make an account. --staff may use the admin, but not read what people wrote."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the promised arguments."""
        parser.add_argument("action", choices=["create"])
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("--password", required=True, help="the password; - reads it from standard input")
        parser.add_argument("--plan", default="", help="a plan's name; without it the default plan holds")
        parser.add_argument("--staff", action="store_true", help="may use the admin")

    def handle(self, *args: Any, **options: Any) -> None:
        """Create the account, or say why not and change nothing."""
        name: str = options["name"]
        password: str = options["password"]
        if password == "-":  # noqa: S105 - means standard input
            password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise CommandError("The password is empty.")
        user = User(username=name, plan=_plan(options["plan"]), is_staff=options["staff"])
        user.set_password(password)
        try:
            user.full_clean(exclude=["password"], validate_unique=False)
        except ValidationError as error:
            raise CommandError(f"The name {name!r} cannot be used: {' '.join(error.messages)}") from error
        try:
            with transaction.atomic():
                user.save()
                if user.is_staff:
                    user.groups.add(_operators())
        except IntegrityError as error:
            raise CommandError(f"The name {name!r} is taken. Choose another.") from error
        self.stdout.write(f"created {name}")


def _plan(name: str) -> Plan | None:
    if not name:
        return None
    plan = Plan.objects.filter(name=name).first()
    if plan is None:
        known = ", ".join(Plan.objects.values_list("name", flat=True))
        raise CommandError(f"There is no plan {name!r}. Known: {known}. Make one with: manage.py plan set {name}")
    return plan


def _operators() -> Group:
    """Return the group that may do all in the admin but read people's text."""
    group, is_new = Group.objects.get_or_create(name=OPERATORS)
    if is_new:
        group.permissions.set(
            Permission.objects.filter(content_type__app_label__in=_APPS).exclude(codename="view_text")
        )
    return group
