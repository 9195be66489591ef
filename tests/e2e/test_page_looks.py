"""The pages at 360 pixels, in the dark, by keyboard, and to axe; and that nothing of them needs another site."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import Running
from tests.e2e.page import Person, wait_end, wait_text, write

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium", "redis")]
PHONE = {"width": 360, "height": 740}
# Colour contrast, labels, roles, order: everything axe knows but advice.
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}


def violations(page: Page) -> list[str]:
    """What axe has against the page, with the elements."""
    # axe is put into the page by the debugger, not as a script of the page: its policy stays as it is.
    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{each['id']}: {[node['target'] for node in each['nodes']]}" for each in found]


def is_too_wide(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE])
def test_axe_finds_nothing(browser: Browser, service: Running, cookies: Any, scheme: str, size: dict[str, int]) -> None:
    with Person(browser, service.url, storage_state=cookies, color_scheme=scheme, viewport=size) as person:
        page = person.tab()
        found = violations(page)
        write(page, "Show me an answer.")
        wait_text(page)
        found += violations(page)
        wait_end(page)
        found += violations(page)
        page.get_by_title("Answer settings").click()
        found += violations(page)
        assert not is_too_wide(page)
        for path in ("/settings", "/usage", "/no-such-page"):
            page = person.tab(path)
            found += violations(page)
            assert not is_too_wide(page)
    assert found == []


@pytest.mark.parametrize("path", ["/accounts/login/", "/accounts/signup/"])
def test_the_doors_are_clean_and_fit_a_phone(browser: Browser, service: Running, path: str) -> None:
    with Person(browser, service.url, viewport=PHONE) as person:
        page = person.tab(path)
        assert violations(page) == []
        assert not is_too_wide(page)
    assert person.errors == []


def test_on_a_phone_the_list_is_a_drawer(browser: Browser, service: Running, cookies: Any) -> None:
    with Person(browser, service.url, storage_state=cookies, viewport=PHONE, has_touch=True) as person:
        page = person.tab()
        write(page, "From a phone.")
        wait_end(page)
        link = page.get_by_role("link", name="From a phone.").first
        expect(link).not_to_be_in_viewport()
        page.get_by_role("button", name="Conversations").click()
        expect(link).to_be_in_viewport()
        page.keyboard.press("Escape")
        expect(link).not_to_be_in_viewport()
        page.get_by_role("button", name="Conversations").click()
        link.click()
        expect(link).not_to_be_in_viewport()
        expect(page.locator(".message.user")).to_have_text("From a phone.")
        assert not is_too_wide(page)
    assert person.errors == []


def test_the_theme_is_the_systems_until_one_is_picked(browser: Browser, service: Running, cookies: Any) -> None:
    with Person(browser, service.url, storage_state=cookies, color_scheme="dark") as person:
        page = person.tab()
        paper = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(paper)
        page.get_by_role("button", name="Use the light theme").click()
        light = page.evaluate(paper)
        assert dark != light
        page.reload()
        assert page.evaluate(paper) == light
        settings = person.tab("/settings")
        expect(settings.get_by_label("Light")).to_be_checked()
        settings.get_by_label("As the system").check()
        assert settings.evaluate(paper) == dark
        page.reload()
        assert page.evaluate(paper) == dark
    assert person.errors == []


def test_everything_can_be_done_by_keyboard(alice: Person) -> None:
    page = alice.tab()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("By hand.")
    page.keyboard.press("Enter")
    wait_end(page)
    rename = page.get_by_role("button", name="Rename By hand.").first
    rename.focus()
    page.keyboard.press("Enter")
    page.keyboard.type("By keys.")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("By keys.")
    page.get_by_role("button", name="Delete By keys.").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_no_page_asks_another_site_for_anything(alice: Person, service: Running) -> None:
    asked: list[str] = []
    alice.context.on("request", lambda request: asked.append(request.url))
    for path in ("/", "/settings", "/usage"):
        page = alice.tab(path)
        policy = page.request.get(service.url + path).headers["content-security-policy"]
        assert "unsafe" not in policy
    assert [url for url in asked if not url.startswith(service.url)] == []
