"""Routes of both dialects. Included at the root, because the plain ones lie there."""

from __future__ import annotations

from django.urls import path, re_path

from chatproject.api import conversations, openai, plain
from chatproject.api.edge import not_built, unknown, unknown_plain

urlpatterns = [
    path("v1/models", openai.models),
    path("v1/models/<str:slug>", openai.model),
    path("v1/chat/completions", openai.chat_completions),
    path("v1/completions", openai.completions),
    re_path(r"^v1/(?:files|batches)(?:/.*)?$", not_built),
    re_path(r"^v1(?:/.*)?$", unknown),
    path("health", plain.health),
    path("debug/queue-stats", plain.queue_stats),
    path("chat", plain.chat),
    path("async-chat", plain.async_chat),
    path("check-response/<str:correlation_id>", plain.check_response),
    path("stream-chat", plain.stream_chat),
    path("stream/<str:correlation_id>", plain.stream),
    path("send-message", plain.send_message),
    path("api/conversations", conversations.conversations),
    path("api/conversations/<str:conversation_id>", conversations.conversation),
    path("api/conversations/<str:conversation_id>/messages", conversations.messages),
    re_path(r"^api(?:/.*)?$", unknown_plain),
]
