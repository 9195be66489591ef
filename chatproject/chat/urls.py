"""Routes of the chat page and of the pages beside it; included at the root."""

from __future__ import annotations

from django.urls import path

from chatproject.accounts import views as account_views
from chatproject.chat import views

urlpatterns = [
    path("", views.page, name="chat"),
    path("c/", views.conversations, name="conversations"),
    path("c/<uuid:conversation_id>", views.page, name="conversation"),
    path("c/<uuid:conversation_id>/transcript", views.transcript, name="transcript"),
    path("c/<uuid:conversation_id>/answers/<uuid:generation_id>", views.answer, name="answer"),
    path("c/<uuid:conversation_id>/rename", views.rename, name="rename"),
    path("c/<uuid:conversation_id>/delete", views.delete, name="delete"),
    path("settings", account_views.settings_page, name="settings"),
    path("settings/keys", account_views.create_key, name="create_key"),
    path("settings/keys/<uuid:key_id>/revoke", account_views.revoke_key, name="revoke_key"),
    path("settings/password", account_views.change_password, name="change_password"),
    path("usage", account_views.usage, name="usage"),
    path("favicon.ico", views.favicon),
]
