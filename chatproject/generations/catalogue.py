"""The model that the environment names is in the table of models, so that a fresh service can answer at once."""

from __future__ import annotations

from django.conf import settings
from django.db import transaction

from chatproject.contract import names
from chatproject.generations.models import ServedModel

BUNDLED_SLUG = "demo"
BUNDLED_DESCRIPTION = "The small bundled model: it knows this product and a few facts."


def ensure_model(*, make_default: bool) -> ServedModel:
    """Return the row of ``CHAT_MODEL`` (the bundled model when empty), made if missing.

    It becomes the default when there is none, or when asked for; an admin's other choices stay.
    """
    slug = names.model_slug(settings.CHAT_MODEL) if settings.CHAT_MODEL else BUNDLED_SLUG
    with transaction.atomic():
        model, _ = ServedModel.objects.get_or_create(
            slug=slug,
            defaults={
                "name": slug if settings.CHAT_MODEL else "Demo model",
                "directory": settings.CHAT_MODEL,
                "description": "" if settings.CHAT_MODEL else BUNDLED_DESCRIPTION,
            },
        )
        default = ServedModel.objects.filter(is_default=True).first()
        if default is None or (make_default and default != model):
            ServedModel.objects.filter(is_default=True).update(is_default=False)
            ServedModel.objects.filter(pk=model.pk).update(is_default=True, is_enabled=True)
            model.refresh_from_db()
    return model
