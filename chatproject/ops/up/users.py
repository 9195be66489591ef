"""The two users every installation starts with: `demo`, on the plan `unlimited`, and `admin`."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.db import transaction

from chatproject.accounts.models import Plan, User
from chatproject.ops.up.config import random_password

DEMO, ADMIN, PLAN = "demo", "admin", "unlimited"


@transaction.atomic
def ensure(password: str) -> dict[str, str]:
    """Make the users that are missing; return the passwords to print, by name.

    With ``password`` both get it at every start. Without, a new user gets a random one, which is returned this once;
    an existing user's password stays.
    """
    plan, _ = Plan.objects.get_or_create(name=PLAN)
    shown: dict[str, str] = {}
    for name in (DEMO, ADMIN):
        is_admin = name == ADMIN
        user: User
        user, is_new = get_user_model().objects.get_or_create(
            username=name, defaults={"plan": plan, "is_staff": is_admin, "is_superuser": is_admin}
        )
        if not is_new and (not password or user.check_password(password)):
            continue
        chosen = password or random_password()
        user.set_password(chosen)
        user.save(update_fields=["password"])
        if not password:
            shown[name] = chosen
    return shown
