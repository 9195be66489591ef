"""What a person does on the chat page, in a real Chromium: sign in, write, wait, read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.needs import find_chromium

READY = "html[data-ready]"
ENDED = ".message.answer:not(.is-live)"
NOBODY = "00000000-0000-0000-0000-000000000000"  # of whom the page asks when it only wants an answer
# Every process of the service shares a test machine's two cores.
expect.set_options(timeout=15_000)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the machine's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """One browser of one user, for a block; more than one tab. Every console error is kept: a page has none."""

    def __init__(self, browser: Browser, url: str, *, max_tokens: int = 60, **options: Any) -> None:
        self.url = url
        self.errors: list[str] = []
        self.context: BrowserContext = browser.new_context(**options)
        self.context.set_default_timeout(15_000)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        # As the settings' panel keeps them, unless it has.
        kept = json.dumps(json.dumps({"max_tokens": str(max_tokens)}))
        self.context.add_init_script(
            f"try {{ localStorage.getItem('chat.params') ?? localStorage.setItem('chat.params', {kept}) }} catch {{}}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def tab(self, path: str = "/") -> Page:
        page = self.context.new_page()
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.url + path)
        if path == "/" or path.startswith("/c/"):
            page.wait_for_selector(READY)
        return page


def sign_in(page: Page, url: str, name: str, password: str) -> None:
    """Sign in as a person does, at the door."""
    page.goto(f"{url}/accounts/login/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector(READY)


def signed_in(browser: Browser, url: str, name: str, password: str) -> Any:
    """Sign in; return the browser's cookies for others to start with."""
    context = browser.new_context()
    sign_in(context.new_page(), url, name, password)
    cookies = context.storage_state()
    context.close()
    return {"cookies": cookies["cookies"], "origins": []}


def write(page: Page, text: str) -> None:
    """Type a message and send it with Enter."""
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def last_answer(page: Page) -> Any:
    return page.locator(".message.answer").last


def wait_text(page: Page, at_least: int = 20) -> str:
    """Wait until the last answer has some text; return it."""
    # The page's policy forbids eval, and so playwright's wait_for_function.
    expect(last_answer(page).locator(".markdown")).to_contain_text(re.compile(rf"[\s\S]{{{at_least}}}"))
    return str(last_answer(page).locator(".markdown").text_content())


def wait_end(page: Page) -> str:
    """Wait until the last answer has ended; return its text."""
    expect(page.locator(ENDED).last).to_be_attached(timeout=30_000)
    expect(page.locator(".message.answer.is-live")).to_have_count(0, timeout=30_000)
    return str(last_answer(page).locator(".markdown").text_content())


def stored(page: Page) -> list[dict[str, Any]]:
    """The messages of the open conversation, as the service has them."""
    found = page.evaluate("fetch(location.pathname + '/transcript').then((answer) => answer.json())")
    return list(found["messages"])
