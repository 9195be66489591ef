"""Conversations and their messages. An answer's text is its generation's; here only its id is kept."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils import timezone


class Conversation(models.Model):
    """One thread of one user. Its id is the ``thread`` of its generations."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations")
    title = models.CharField(max_length=120, blank=True)
    is_title_automatic = models.BooleanField(default=True)
    model = models.CharField(max_length=63, blank=True, help_text="empty: the default model")
    system_prompt = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["-updated_at"]
        indexes: ClassVar = [models.Index(fields=["user", "-updated_at"])]
        permissions: ClassVar = [("view_text", "Can read what users wrote and were answered")]

    def __str__(self) -> str:
        return str(self.id)


class Message(models.Model):
    """A turn. A user's holds its text; an answer points at its generation."""

    class Role(models.TextChoices):
        """Who wrote it."""

        USER = "user"
        ASSISTANT = "assistant"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages")
    position = models.PositiveIntegerField(help_text="order within the conversation")
    role = models.CharField(max_length=16, choices=Role.choices)
    text = models.TextField(blank=True)
    generation_id = models.UUIDField(null=True, blank=True, unique=True)
    is_superseded = models.BooleanField(default=False, help_text="replaced by an edit or another answer")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["position"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["conversation", "position"], name="one_message_per_position")
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.position}"
