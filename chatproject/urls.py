"""Every promised route, and the app that answers it."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from chatproject import health
from chatproject.ops.exposition import metrics_page

urlpatterns = [
    path("livez", health.livez),
    path("readyz", health.readyz),
    path("metrics", metrics_page),
    path("admin/", admin.site.urls),
    path("accounts/", include("chatproject.accounts.urls")),
    path("", include("chatproject.chat.urls")),
    path("", include("chatproject.api.urls")),
]
