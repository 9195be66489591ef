"""Static files are served, and no request costs a thread for being asked through them."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.handlers.base import BaseHandler
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path


async def other(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok")


urlpatterns = [path("other", other)]


@pytest.fixture(autouse=True)
def _urls(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__


async def test_the_whole_chain_of_middleware_is_async() -> None:
    handler = BaseHandler()
    adapted: list[str] = []
    adapt = handler.adapt_method_mode

    def watch(is_async: bool, method: Any, method_is_async: Any = None, debug: bool = False, name: Any = None) -> Any:
        if method_is_async is False and is_async:
            adapted.append(str(name))
        return adapt(is_async, method, method_is_async, debug, name)

    handler.adapt_method_mode = watch  # type: ignore[method-assign]
    handler.load_middleware(is_async=True)
    assert adapted == []


async def test_a_file_comes_in_an_async_chain() -> None:
    answer = await AsyncClient().get("/static/favicon.svg")
    assert (answer.status_code, answer["Content-Type"]) == (200, "image/svg+xml")
    assert answer.content.startswith(b"<svg")
    unchanged = await AsyncClient().get("/static/favicon.svg", headers={"if-modified-since": answer["Last-Modified"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    head = await AsyncClient().head("/static/favicon.svg")
    assert head["Content-Length"] == str(len(answer.content))
    assert (await AsyncClient().get("/other")).content == b"ok"


def test_a_file_comes_in_a_sync_chain() -> None:
    answer = Client().get("/static/favicon.svg")
    assert b"".join(answer.streaming_content).startswith(b"<svg")
