"""The choice of a model, and the mark where the model no longer saw the conversation, in a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Running
from tests.e2e.page import READY, wait_end, wait_text, write

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium", "redis")]
FAKE_CONTEXT = 8_192  # tokens; the fake engine takes a word for a token


@pytest.fixture
def second_model(service: Running) -> Iterator[str]:
    """A model that an admin has added and that no worker serves yet."""
    begin = "from chatproject.generations.models import ServedModel as M; "
    service.manage("shell", "-c", begin + "M.objects.create(slug='second', name='Second model')")
    yield "second"
    service.manage("shell", "-c", begin + "M.objects.filter(slug='second').update(is_enabled=False)")


def test_the_mark_stands_where_the_model_no_longer_saw(page: Page) -> None:
    words = "river " * (FAKE_CONTEXT // 3)
    for _ in range(3):
        write(page, words.strip())
        wait_end(page)
    mark = page.locator(".cut")
    expect(mark).to_have_count(1)
    expect(mark).to_contain_text(re.compile(r"The model no longer saw what stands above: \d messages? did not fit"))
    above = mark.evaluate("node => [...node.parentElement.children].indexOf(node)")
    assert above == int(re.search(r"\d+", mark.text_content() or "").group())  # type: ignore[union-attr]
    page.reload()
    page.wait_for_selector(READY)
    expect(page.locator(".cut")).to_have_count(1)


def test_a_chosen_model_is_asked_and_remembered(page: Page, second_model: str) -> None:
    expect(page.locator("[data-model]")).to_have_count(0)
    picker = page.get_by_role("combobox", name="Model")
    deadline_s = time.monotonic() + 10
    while not picker.count():  # a web process knows of it within a second
        assert time.monotonic() < deadline_s
        page.reload()
        page.wait_for_selector(READY)
    expect(picker).to_have_value("demo")
    picker.select_option("second")
    write(page, "Is anybody there?")
    # No worker has it: that is said, and the message waits.
    expect(page.locator(".message.answer").last).to_contain_text(re.compile("worker", re.I), timeout=15_000)
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.locator(".message.answer.is-live")).to_have_count(0)
    page.goto(page.url.split("/c/")[0])
    page.wait_for_selector(READY)
    expect(picker).to_have_value("second")
    picker.select_option("demo")
    write(page, "And here?")
    wait_text(page)
    wait_end(page)
