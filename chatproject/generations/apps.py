"""The generations app."""

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


def _ensure_model(sender: Any, **_: object) -> None:
    from chatproject.generations.catalogue import ensure_model

    ensure_model(make_default=False)


def _forget_user(user: Any, **_: object) -> None:
    from chatproject.generations import services
    from chatproject.generations.models import Generation

    services.forget(generation_ids=list(Generation.objects.filter(user=user).values_list("id", flat=True)))


class GenerationsConfig(AppConfig):
    """The durable job: admission, tickets, log, records, streaming."""

    name = "chatproject.generations"
    label = "generations"
    verbose_name = "Models and generations"

    def ready(self) -> None:
        """Have the environment's model in the table after every migrate; let go of what a leaving user runs."""
        from chatproject.accounts.signals import user_leaving

        post_migrate.connect(_ensure_model, sender=self)
        user_leaving.connect(_forget_user)
