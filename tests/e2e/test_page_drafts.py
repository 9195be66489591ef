"""What was typed is never lost: not by a refusal, a closed tab, another tab or another user of the same browser."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Running
from tests.e2e.page import Person, sign_in, wait_end, write
from tests.e2e.wire import Wire

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium", "redis")]


@pytest.fixture
def alice(wired: Person) -> Person:
    return wired


def box(page: Page) -> Any:
    return page.get_by_label("Message", exact=True)


def test_a_refused_text_joins_what_was_typed_after_it(page: Page, wire: Wire) -> None:
    write(page, "A chat to come back to.")
    wait_end(page)
    wire.answers = lambda frame: {} if frame["type"] == "send" else None
    write(page, "Sent and refused.")
    box(page).fill("Typed meanwhile.")
    page.get_by_role("link", name="New chat", exact=True).click()
    expect(page.locator(".message")).to_have_count(0)
    client_id = wire.sent[-1]["id"]
    wire.say({"type": "error", "id": client_id, "code": "queue_full", "message": "Too much to do."})
    page.locator(".row a", has_text="A chat to come back to.").first.click()
    expect(box(page)).to_have_value("Sent and refused.\n\nTyped meanwhile.")
    expect(page.locator(".message")).to_have_count(2)


def test_an_unsent_message_of_a_closed_tab_is_found_by_a_new_one(alice: Person, page: Page, wire: Wire) -> None:
    wire.is_down = True
    wire.cut()
    write(page, "Never left.")
    expect(page.get_by_text("Not sent yet")).to_be_visible()
    box(page).fill("Typed meanwhile.")
    page.close()
    other = alice.tab()
    expect(box(other)).to_have_value("Never left.\n\nTyped meanwhile.")
    other.reload()
    expect(box(other)).to_have_value("Never left.\n\nTyped meanwhile.")
    # Sent by its reader, it is gone from every later tab.
    wire.is_down = False
    box(other).press("Enter")
    wait_end(other)
    expect(box(alice.tab())).to_have_value("")
    assert len([frame for frame in wire.sent if frame["type"] == "send"]) == 1


def test_a_message_on_its_way_and_a_draft_both_survive_a_reload(page: Page, wire: Wire) -> None:
    wire.is_down = True
    wire.cut()
    write(page, "On its way.")
    box(page).fill("Typed meanwhile.")
    page.reload()
    expect(page.locator(".message.user")).to_contain_text("On its way.")
    expect(box(page)).to_have_value("Typed meanwhile.")
    wire.is_down = False
    wait_end(page)
    page.reload()
    expect(box(page)).to_have_value("Typed meanwhile.")


def test_one_tab_leaves_the_text_of_another_alone(alice: Person, page: Page) -> None:
    other = alice.tab()
    box(other).fill("A long text in the other tab.")
    write(page, "A new chat in this one.")
    wait_end(page)
    # What a tab finds after that one has crashed.
    expect(box(alice.tab())).to_have_value("A long text in the other tab.")


def test_a_text_deleted_in_one_tab_stays_where_it_is_shown(alice: Person, page: Page) -> None:
    box(page).fill("Shown in two tabs.")
    other = alice.tab()
    expect(box(other)).to_have_value("Shown in two tabs.")
    box(other).fill("")
    page.reload()
    expect(box(page)).to_have_value("Shown in two tabs.")


def test_another_user_of_the_browser_sees_no_draft(alice: Person, page: Page, service: Running) -> None:
    def change_to(name: str) -> None:
        page.get_by_role("button", name="Sign out").click()
        sign_in(page, service.url, name, service.password)

    box(page).fill("For my eyes only.")
    change_to("admin")
    expect(box(page)).to_have_value("")
    change_to("demo")
    expect(box(page)).to_have_value("For my eyes only.")
