"""Who may use the service, how much, and what was used: users, plans, keys, and the ledger."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.contrib.auth.models import AbstractUser
from django.core.validators import MinValueValidator
from django.db import models
from django.utils import timezone

from chatproject.contract.names import Lane

_AT_LEAST_0 = [MinValueValidator(0)]


class Plan(models.Model):
    """What a group of users may do. An empty limit means no limit."""

    name = models.SlugField(unique=True)
    lane = models.CharField(
        max_length=16, choices=[(lane.value, lane.value) for lane in Lane], default=Lane.INTERACTIVE.value
    )
    weight = models.FloatField(default=1.0, validators=[MinValueValidator(0.01)], help_text="share within the lane")
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True)
    gpu_seconds_per_day = models.FloatField(null=True, blank=True, validators=_AT_LEAST_0)
    concurrent = models.PositiveIntegerField("concurrent generations", null=True, blank=True)
    is_default = models.BooleanField(default=False, help_text="given to new accounts")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["is_default"], condition=models.Q(is_default=True), name="one_default_plan")
        ]
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class User(AbstractUser):
    """A person. Limits left empty come from the plan."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, null=True, blank=True, related_name="users")
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True, help_text="overrides the plan")
    tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True, help_text="overrides the plan")
    gpu_seconds_per_day = models.FloatField(
        null=True, blank=True, validators=_AT_LEAST_0, help_text="overrides the plan"
    )
    concurrent = models.PositiveIntegerField(
        "concurrent generations", null=True, blank=True, help_text="overrides the plan"
    )


class ApiKey(models.Model):
    """A key that acts as its user. Only its digest is stored; the key itself is shown once."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=80)
    prefix = models.CharField(max_length=16, help_text="the key's first characters, to tell keys apart")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    scopes = models.JSONField(default=list, blank=True, help_text="empty: everything its user may do")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "API key"
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class DailyUse(models.Model):
    """One user's use on one UTC day: what was spent, and what running generations hold back."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="daily_uses")
    day = models.DateField()
    tokens_used = models.PositiveBigIntegerField(default=0)
    tokens_reserved = models.PositiveBigIntegerField(default=0)
    gpu_seconds_used = models.FloatField(default=0)
    gpu_seconds_reserved = models.FloatField(default=0)
    generations = models.PositiveIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["user", "day"], name="one_use_per_user_and_day")]
        ordering: ClassVar = ["-day"]
        verbose_name_plural = "daily use"

    def __str__(self) -> str:
        return f"{self.user} on {self.day}"


class Reservation(models.Model):
    """What one accepted generation may cost at most; made in its accept transaction, gone in its terminal one."""

    generation_id = models.UUIDField(primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="reservations")
    day = models.DateField()
    tokens = models.PositiveBigIntegerField()
    gpu_seconds = models.FloatField()
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return str(self.generation_id)


class UsageRecord(models.Model):
    """A line of the ledger: what one generation cost. Never changed, and kept when its user or answer goes."""

    generation_id = models.UUIDField(unique=True)
    user = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="usage_records")
    username = models.CharField(max_length=150)
    model = models.CharField(max_length=64)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    gpu_seconds = models.FloatField(default=0)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]
        indexes: ClassVar = [models.Index(fields=["user", "created_at"])]

    def __str__(self) -> str:
        return f"{self.username}: {self.prompt_tokens} + {self.completion_tokens} tokens"
