"""The chat app."""

from django.apps import AppConfig


class ChatConfig(AppConfig):
    """Conversations and the page."""

    name = "chatproject.chat"
    label = "chat"
    verbose_name = "Conversations"
