"""An admin page that shows and never changes: ledger, reservations and generations are the service's to write."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Lists and shows; who may change the table elsewhere may not do it here."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Say no."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Say no; who may change or view may look."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Let look who could look or change."""
        allowed: bool = super().has_view_permission(request, obj) or super().has_change_permission(request, obj)
        return allowed

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say no."""
        return False


def amount(used: float, limit: float | None, *, held: float = 0) -> str:
    """Return ``used / limit`` for a list, with what running answers hold."""
    shown = f"{used:,.0f} / {'no limit' if limit is None else f'{limit:,.0f}'}"
    return f"{shown} (+{held:,.0f} held)" if held else shown
