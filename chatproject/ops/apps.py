"""The operators' app: the commands that start, inspect and break the service."""

from django.apps import AppConfig


class OpsConfig(AppConfig):
    """Tells Django where the commands are."""

    name = "chatproject.ops"
    label = "ops"
