"""`manage.py plan set NAME [--lane L] [--weight W] [--requests-per-minute N] ...`: makes a plan, or changes it."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from chatproject.accounts.models import Plan
from chatproject.contract.names import LANES

_FIELDS = ("lane", "weight", "requests_per_minute", "tokens_per_day", "gpu_seconds_per_day", "concurrent")


class Command(BaseCommand):
    """Makes and changes plans."""

    help = "Make a plan, or change the given limits of one. A limit 'none' means no limit."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the promised arguments."""
        parser.add_argument("action", choices=["set"])
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("--lane", choices=[lane.value for lane in LANES])
        parser.add_argument("--weight", type=float, help="share within the lane")
        parser.add_argument("--requests-per-minute", metavar="N")
        parser.add_argument("--tokens-per-day", metavar="N")
        parser.add_argument("--gpu-seconds-per-day", metavar="X")
        parser.add_argument("--concurrent", metavar="N", help="generations at a time")

    def handle(self, *args: Any, **options: Any) -> None:
        """Save the plan, or say which value is wrong and change nothing."""
        plan = Plan.objects.filter(name=options["name"]).first() or Plan(name=options["name"])
        is_new = plan.pk is None
        for field in _FIELDS:
            if options[field] is not None:
                setattr(plan, field, None if options[field] == "none" else options[field])
        try:
            plan.full_clean()
        except ValidationError as error:
            wrong = "; ".join(
                f"--{field.replace('_', '-')}: {' '.join(texts)}" for field, texts in error.message_dict.items()
            )
            raise CommandError(f"The plan was not saved. {wrong}") from error
        plan.save()
        limits = ", ".join(f"{field} {_shown(getattr(plan, field))}" for field in _FIELDS)
        self.stdout.write(f"{'created' if is_new else 'changed'} {plan.name}: {limits}")


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
