"""The error pages are whole without any context: they come when nothing else works."""

from __future__ import annotations

import re

import pytest
from django.template.loader import render_to_string


@pytest.mark.parametrize("name", ["400", "403", "403_csrf", "404", "500"])
def test_error_page_says_what_happened_and_what_to_do(name: str) -> None:
    page = render_to_string(f"{name}.html")
    (heading,) = re.findall(r"<h1>(.+)</h1>", page)
    (advice,) = re.findall(r"<p>([^<]+)</p>", page)
    assert page.startswith("<!doctype html>")
    assert f"<title>{heading} · Chat</title>" in page
    assert len(advice) > 30
    assert 'href="/"' in page
