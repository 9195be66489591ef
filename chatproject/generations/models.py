"""The durable job's tables. A generation is whole by itself: request, answer, usage; chat only points at it."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils import timezone

from chatproject.accounts.models import Plan
from chatproject.contract.names import Lane


class ServedModel(models.Model):
    """A model that users may choose; workers that have it announce its state in Redis."""

    slug = models.SlugField(max_length=63, unique=True, help_text="names its queue and the model of the API")
    name = models.CharField(max_length=120)
    directory = models.CharField(max_length=300, blank=True, help_text="directory or hub id; empty: the bundled model")
    description = models.CharField(max_length=300, blank=True)
    is_enabled = models.BooleanField(default=True)
    is_default = models.BooleanField(default=False)
    context_tokens = models.PositiveIntegerField(
        default=0, help_text="0: what its workers say; below that, a smaller context is used"
    )
    plans = models.ManyToManyField(Plan, blank=True, help_text="who may use it; empty: everyone")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name = "model"
        ordering: ClassVar = ["slug"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["is_default"], condition=models.Q(is_default=True), name="one_default_model"
            )
        ]

    def __str__(self) -> str:
        return self.name


class Status(models.TextChoices):
    """``accepted``, then one terminal state for ever; waiting and running are Redis's to say."""

    ACCEPTED = "accepted"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"
    EXPIRED = "expired"


class Generation(models.Model):
    """One answer: what was asked for, and how it ended. A trigger forbids leaving a terminal state."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="generations")
    client_id = models.CharField(max_length=64, help_text="the sender's own id; makes a retry the same message")
    body_sha256 = models.CharField(max_length=64, editable=False)
    thread = models.UUIDField(null=True, blank=True, help_text="the conversation, if there is one")
    origin = models.CharField(max_length=16, default="chat")
    model = models.CharField(max_length=63)
    lane = models.CharField(max_length=16, choices=[(lane.value, lane.value) for lane in Lane])
    request = models.JSONField(help_text="the GenerationRequest as accepted")
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.ACCEPTED)
    accepted_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    cancel_requested_at = models.DateTimeField(null=True, blank=True)

    attempt = models.PositiveSmallIntegerField(default=1, help_text="runs that died in a row, plus one")
    deaths = models.PositiveSmallIntegerField(default=0)
    tokens_at_death = models.PositiveIntegerField(default=0)
    run_at_death = models.BigIntegerField(null=True, blank=True, help_text="the last run whose death was counted")
    version = models.PositiveIntegerField(default=0, help_text="grows with every return to the queue")

    ended_at = models.DateTimeField(null=True, blank=True)
    answer = models.TextField(blank=True)
    reason = models.CharField(max_length=16, blank=True)
    code = models.CharField(max_length=32, blank=True)
    message = models.CharField(max_length=500, blank=True)
    end_seq = models.PositiveIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    dropped_turns = models.PositiveIntegerField(default=0)
    engine_s = models.FloatField("GPU-seconds", default=0)
    queue_ms = models.PositiveIntegerField(default=0)
    prefill_ms = models.PositiveIntegerField(default=0)
    decode_ms = models.PositiveIntegerField(default=0)
    # Without a default: SQLite then adds the column in place, and the trigger of 0002 stays.
    tokens_per_s = models.FloatField(null=True, blank=True)
    mean_rows = models.FloatField(null=True, blank=True, help_text="with how many it was batched")
    kv_blocks = models.PositiveIntegerField(null=True, blank=True, help_text="of the cache, held at the end")

    class Meta:
        ordering: ClassVar = ["-accepted_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user", "client_id"], name="one_generation_per_client_id"),
            models.UniqueConstraint(
                fields=["thread"], condition=models.Q(status="accepted"), name="one_live_generation_per_thread"
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["status", "accepted_at"]),
            models.Index(fields=["user", "accepted_at"]),
            models.Index(fields=["thread", "accepted_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.id} ({self.status})"

    @property
    def is_terminal(self) -> bool:
        """Whether the answer has ended, however."""
        return self.status != Status.ACCEPTED
