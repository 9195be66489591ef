"""Conversations in the admin: whose, how long, when. The words only for who has the permission `chat.view_text`."""

from __future__ import annotations

import uuid
from typing import Any, Final

from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.http import HttpRequest

from chatproject.accounts.readonly_admin import ReadOnlyAdmin
from chatproject.chat import conversations
from chatproject.chat.models import Conversation, Message
from chatproject.generations.models import Generation

VIEW_TEXT: Final = "chat.view_text"


class MessageInline(admin.TabularInline):  # type: ignore[type-arg]
    """The turns of a conversation, in order."""

    model = Message
    extra = 0
    can_delete = False
    ordering = ("position",)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say no."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say no."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Let look who may look at the conversation."""
        return bool(
            request.user.has_perm("chat.view_conversation") or request.user.has_perm("chat.change_conversation")
        )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Message]:
        """Load the answers along, where they may be read; their state always."""
        answer = Generation.objects.filter(id=OuterRef("generation_id"))
        messages = super().get_queryset(request).annotate(answer_status=Subquery(answer.values("status")[:1]))
        if request.user.has_perm(VIEW_TEXT):
            return messages.annotate(answer_text=Subquery(answer.values("answer")[:1]))
        return messages.defer("text")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Leave the text out where it may not be read."""
        words = ("words",) if request.user.has_perm(VIEW_TEXT) else ()
        return ("position", "role", *words, "state", "is_superseded", "created_at")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Change nothing."""
        return self.get_fields(request, obj)

    @admin.display(description="text")
    def words(self, message: Any) -> str:
        """Show what was written or answered."""
        return str(message.text or message.answer_text or "")

    @admin.display(description="answer")
    def state(self, message: Any) -> str | None:
        """Show the state of the answer."""
        status: str | None = message.answer_status
        return status


@admin.register(Conversation)
class ConversationAdmin(ReadOnlyAdmin):
    """Conversations; deleting one stops what it still answers and keeps the ledger."""

    list_filter = ("model", "created_at", "updated_at")
    list_select_related = ("user",)
    date_hierarchy = "created_at"
    search_fields = ("user__username",)
    search_help_text = "a username, or the whole id of a conversation"
    inlines = (MessageInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Conversation]:
        """Count the messages along."""
        return super().get_queryset(request).annotate(num_messages=Count("messages"))

    def get_list_display(self, request: HttpRequest) -> Any:
        """Show titles to who may read text: they are made from the first message."""
        return ("short_id", "user", *self._title(request), "num_messages", "model", "created_at", "updated_at")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Hide title and system text likewise."""
        words = ("title", "system_prompt") if request.user.has_perm(VIEW_TEXT) else ("hidden_text",)
        return ("id", "user", *words, "model", "created_at", "updated_at")

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Find by whole id too."""
        try:
            return queryset.filter(id=uuid.UUID(search_term.strip())), False
        except ValueError:
            found: tuple[Any, bool] = super().get_search_results(request, queryset, search_term)
            return found

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Let delete who has the right."""
        return bool(admin.ModelAdmin.has_delete_permission(self, request, obj))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Name the conversations alone: their messages go with them, and a list of those would be long."""
        return [str(each.pk) for each in objs], {"conversations": len(objs)}, set(), []

    def delete_model(self, request: HttpRequest, obj: Conversation) -> None:
        """Delete as its user would."""
        conversations.delete(user=obj.user, conversation_id=obj.pk)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Conversation]) -> None:
        """Delete one by one, each whole."""
        for conversation in Conversation.objects.filter(pk__in=queryset.values("pk")).select_related("user"):
            self.delete_model(request, conversation)

    @admin.display(description="id", ordering="id")
    def short_id(self, conversation: Conversation) -> str:
        """Show enough to tell rows apart."""
        return str(conversation.pk)[:8]

    @admin.display(description="messages", ordering="num_messages")
    def num_messages(self, conversation: Any) -> int:
        """Show how many turns it has."""
        return int(conversation.num_messages)

    @admin.display(description="text")
    def hidden_text(self, conversation: Conversation) -> str:
        """Say why nothing is shown."""
        return "Hidden. It takes the permission 'Can read what users wrote and were answered'."

    def _title(self, request: HttpRequest) -> tuple[str, ...]:
        return ("title",) if request.user.has_perm(VIEW_TEXT) else ()
