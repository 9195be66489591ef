"""Models and generations in the admin: where each generation is, how long it took, and the button that stops it.

What people wrote is shown only to who has the permission `chat.view_text`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, Final

import redis
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest

from chatproject import redis_client
from chatproject.accounts.readonly_admin import ReadOnlyAdmin
from chatproject.contract import names
from chatproject.contract.errors import ContractError
from chatproject.contract.messages import ModelStatus
from chatproject.generations import selectors, services
from chatproject.generations.models import Generation, ServedModel, Status

VIEW_TEXT: Final = "chat.view_text"
_TIMES: Final = ("accepted_at", "ended_at", "queue_ms", "prefill_ms", "decode_ms", "engine_s")
_TOKENS: Final = ("prompt_tokens", "completion_tokens", "cached_tokens", "dropped_turns")


@admin.register(ServedModel)
class ServedModelAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Models, with what the workers say of them now."""

    list_display = ("name", "slug", "directory", "state", "context", "is_default", "is_enabled", "allowed_plans")
    list_filter = ("is_enabled", "plans")
    search_fields = ("name", "slug", "directory")
    filter_horizontal = ("plans",)
    readonly_fields = ("is_default", "state", "created_at")
    actions = ("make_default",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ServedModel]:
        """Load the plans along."""
        return super().get_queryset(request).prefetch_related("plans")

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Ask Redis once for all shown models."""
        changes = super().get_changelist_instance(request)
        told = _told(model.slug for model in changes.result_list)
        for model in changes.result_list:
            model.told = told.get(model.slug, ("unknown", 0))
        return changes

    @admin.display(description="state, as the workers say")
    def state(self, model: Any) -> str:
        """Show the state, or `unknown` when Redis is away."""
        return _of(model)[0]

    @admin.display(description="context")
    def context(self, model: Any) -> str:
        """Show how many tokens the context holds."""
        tokens = model.context_tokens or _of(model)[1]
        return f"{tokens:,}" if tokens else "not known yet"

    @admin.display(description="plans")
    def allowed_plans(self, model: ServedModel) -> str:
        """Show who may use it."""
        return ", ".join(plan.name for plan in model.plans.all()) or "everyone"

    @admin.action(description="Make the default model", permissions=["change"])
    def make_default(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        """Answer with this model where none is named."""
        chosen = list(queryset)
        if len(chosen) != 1:
            self.message_user(request, "Select exactly one model.", messages.ERROR)
            return
        with transaction.atomic():
            ServedModel.objects.filter(is_default=True).update(is_default=False)
            ServedModel.objects.filter(pk=chosen[0].pk).update(is_default=True)
        self.message_user(request, f"{chosen[0]} is the default model now.", messages.SUCCESS)


@admin.register(Generation)
class GenerationAdmin(ReadOnlyAdmin):
    """Every generation: its state now, its times, its tokens. Nothing here is edited; it can be stopped."""

    list_display = ("short_id", "user", "state", "model", "lane", "origin", "accepted_at", "waited", "took",
                    "prompt_tokens", "completion_tokens", "speed")  # fmt: skip
    list_filter = ("status", "lane", "model", "origin", "code", "accepted_at")
    list_select_related = ("user",)
    date_hierarchy = "accepted_at"
    search_fields = ("user__username",)
    search_help_text = "a username, or the whole id of a generation or conversation"
    show_full_result_count = False
    actions = ("stop",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Generation]:
        """Leave the long texts in the database."""
        return super().get_queryset(request).defer("request", "answer")

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Find by whole id too."""
        try:
            id_ = uuid.UUID(search_term.strip())
        except ValueError:
            found: tuple[Any, bool] = super().get_search_results(request, queryset, search_term)
            return found
        return queryset.filter(id=id_) | queryset.filter(thread=id_), False

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Ask Redis once which of the shown ones run."""
        changes = super().get_changelist_instance(request)
        live = _live(str(row.pk) for row in changes.result_list if not row.is_terminal)
        for row in changes.result_list:
            row.live = live.get(str(row.pk))
        return changes

    def get_fieldsets(self, request: HttpRequest, obj: Generation | None = None) -> Any:
        """Show the text to who may read it."""
        text: Any = ("asked", "answer") if request.user.has_perm(VIEW_TEXT) else ("hidden_text",)
        return (
            (None, {"fields": ("id", "user", "state", "model", "lane", "origin", "thread", "client_id")}),
            ("End", {"fields": ("reason", "code", "message", "end_seq", "sha256")}),
            ("Times", {"fields": _TIMES}),
            ("Tokens", {"fields": _TOKENS}),
            ("Runs", {"fields": ("attempt", "deaths", "version", "expires_at", "cancel_requested_at")}),
            ("Text", {"fields": text}),
        )

    @admin.display(description="id", ordering="id")
    def short_id(self, row: Generation) -> str:
        """Show enough to tell rows apart."""
        return str(row.pk)[:8]

    @admin.display(ordering="status")
    def state(self, row: Any) -> str:
        """Show the stored end, or what Redis says of one that lives."""
        if row.is_terminal:
            return f"{row.status}: {row.code or row.reason}" if row.code or row.reason else str(row.status)
        said = getattr(row, "live", None) or _live([str(row.pk)]).get(str(row.pk), "accepted")
        return f"{said} (stopping)" if row.cancel_requested_at else said

    @admin.display(description="waited", ordering="queue_ms")
    def waited(self, row: Generation) -> str | None:
        """Show the time from accepted to claimed."""
        return f"{row.queue_ms / 1000:.1f} s" if row.is_terminal else None

    @admin.display(description="took")
    def took(self, row: Generation) -> str | None:
        """Show the time from accepted to ended."""
        return f"{(row.ended_at - row.accepted_at).total_seconds():.1f} s" if row.ended_at else None

    @admin.display(description="tokens/s")
    def speed(self, row: Generation) -> str | None:
        """Show the speed of decoding."""
        return f"{row.completion_tokens * 1000 / row.decode_ms:.0f}" if row.decode_ms else None

    @admin.display(description="asked")
    def asked(self, row: Generation) -> str:
        """Show the turns as accepted."""
        return "\n\n".join(f"[{turn['role']}]\n{turn['text']}" for turn in row.request.get("turns", []))

    @admin.display(description="text")
    def hidden_text(self, row: Generation) -> str:
        """Say why nothing is shown."""
        return "Hidden. It takes the permission 'Can read what users wrote and were answered'."

    def has_stop_permission(self, request: HttpRequest) -> bool:
        """Let stop who may change generations."""
        return bool(request.user.has_perm("generations.change_generation"))

    @admin.action(description="Stop", permissions=["stop"])
    def stop(self, request: HttpRequest, queryset: QuerySet[Generation]) -> None:
        """Ask for the end of those that live."""
        rows = list(queryset.filter(status=Status.ACCEPTED))
        for row in rows:
            services.stop(user_id=row.user_id, generation_id=row.pk)
        self.message_user(request, f"Asked {len(rows)} to stop. What has ended stays as it is.", messages.SUCCESS)


def _told(slugs: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Return (state, context tokens) by slug; empty when Redis is away."""
    wanted = list(slugs)
    try:
        texts: Any = redis_client.client().mget([names.model_key(slug) for slug in wanted]) if wanted else []
        workers = [worker.model for worker in selectors.workers()]
        statuses = {slug: ModelStatus.from_json(text) for slug, text in zip(wanted, texts, strict=True) if text}
    except (redis.RedisError, ContractError):
        return {}
    told = {}
    for slug in wanted:
        count, status = workers.count(slug), statuses.get(slug)
        said = f"{status.state}{f' ({status.detail})' if status.detail else ''}" if status else "never seen"
        # What was said is kept for a day, so that estimates survive the workers.
        who = f"{count} worker{'s' if count > 1 else ''}" if count else "no worker now"
        told[slug] = (f"{said}, {who}", status.context_tokens if status else 0)
    return told


def _of(model: Any) -> tuple[str, int]:
    told: tuple[str, int] = getattr(model, "told", None) or _told([model.slug]).get(model.slug, ("unknown", 0))
    return told


def _live(ids: Iterable[str]) -> dict[str, str]:
    """Return `running` or `waiting` by id; empty when Redis is away."""
    wanted = list(ids)
    try:
        leases: Any = redis_client.client().mget([names.lease_key(id_) for id_ in wanted]) if wanted else []
    except redis.RedisError:
        return {}
    return {id_: "running" if lease else "waiting" for id_, lease in zip(wanted, leases, strict=True)}
