"""A bad connection: the page comes back by itself, and nothing is lost, repeated or sent twice."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.page import Person, last_answer, stored, wait_end, wait_text, write
from tests.e2e.wire import Wire

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium", "redis")]


@pytest.fixture
def alice(wired: Person) -> Person:
    return wired


def is_whole(page: Page) -> bool:
    shown = wait_end(page)
    return "".join(shown.split()) == "".join(stored(page)[-1]["text"].split())


def test_an_answer_goes_on_after_the_connection_was_lost(page: Page, wire: Wire) -> None:
    write(page, "Go on after a cut.")
    for length in (40, 160):
        wait_text(page, length)
        wire.cut()
    assert is_whole(page)
    resumed = [frame["after"] for frame in wire.sent if frame["type"] == "resume"]
    assert resumed
    assert all(after > 0 for after in resumed)


def test_a_lost_frame_is_asked_for_again(page: Page, wire: Wire) -> None:
    lost: list[int] = []

    def passes(frame: dict[str, Any]) -> bool:
        if frame["type"] == "delta" and frame["seq"] in (4, 9) and frame["seq"] not in lost:
            lost.append(frame["seq"])
            return False
        return True

    wire.passes = passes
    write(page, "Lose some of it.")
    assert is_whole(page)
    assert len(lost) == 2
    # The second is asked for too, unless the answer to the first had not passed it yet.
    assert [frame["after"] for frame in wire.sent if frame["type"] == "resume"] in ([3], [3, 8])


def test_a_damaged_answer_is_taken_again_from_the_start(page: Page, wire: Wire) -> None:
    damaged: list[int] = []

    def passes(frame: dict[str, Any]) -> bool:
        if frame["type"] == "delta" and frame["seq"] == 5 and not damaged:
            damaged.append(5)
            wire.say(frame | {"text": "x" * len(frame["text"])})
            return False
        return True

    wire.passes = passes
    write(page, "Damage one piece.")
    assert is_whole(page)
    assert [frame["after"] for frame in wire.sent if frame["type"] == "resume"] == [0]


def test_what_is_sent_while_offline_goes_out_once_the_connection_is_back(page: Page, wire: Wire) -> None:
    wire.is_down = True
    wire.cut()
    write(page, "Written on a train.")
    expect(page.get_by_text("Not sent yet")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="Connection lost")).to_be_visible()
    wire.is_down = False
    assert is_whole(page)
    expect(page.get_by_text("Connection lost")).to_be_hidden()
    assert [message["role"] for message in stored(page)] == ["user", "assistant"]


def test_a_message_whose_receipt_was_lost_is_stored_once(page: Page, wire: Wire) -> None:
    swallowed: list[str] = []

    def passes(frame: dict[str, Any]) -> bool:
        if frame["type"] == "accepted" and not swallowed:
            swallowed.append(frame["id"])
            return False
        return len(swallowed) > 1

    wire.passes = passes
    write(page, "Did you get this?")
    while not swallowed:
        page.wait_for_timeout(20)
    swallowed.append("from here on all pass")
    wire.cut()
    assert is_whole(page)
    sends = [frame["id"] for frame in wire.sent if frame["type"] == "send"]
    assert len(sends) == 2
    assert len(set(sends)) == 1
    assert len(stored(page)) == 2


def unknown(client_id: str, retry_after_s: float) -> dict[str, Any]:
    """Return what the service says when it cannot tell whether a message was stored."""
    return {
        "type": "error", "id": client_id, "code": "unavailable", "message": "Try again in a moment.", "unknown": True,
        "retry_after_s": retry_after_s,
    }  # fmt: skip


def test_a_message_that_may_be_stored_is_sent_again_under_its_id(page: Page, wire: Wire) -> None:
    doubted: list[str] = []

    def passes(frame: dict[str, Any]) -> bool:
        if frame["type"] == "accepted" and not doubted:
            doubted.append(frame["id"])
            wire.say(unknown(frame["id"], 0.5))
            return False
        return True

    wire.passes = passes
    write(page, "Stored or not?")
    expect(page.get_by_text("Not confirmed yet")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    assert is_whole(page)
    assert [frame["id"] for frame in wire.sent if frame["type"] == "send"] == doubted * 2
    assert [message["role"] for message in stored(page)] == ["user", "assistant"]


def test_a_message_that_is_never_confirmed_comes_back(page: Page, wire: Wire) -> None:
    wire.answers = lambda frame: unknown(frame["id"], 0.01) if frame["type"] == "send" else None
    write(page, "Ask a few times.")
    expect(page.get_by_label("Message", exact=True)).to_have_value("Ask a few times.")
    expect(page.locator(".message")).to_have_count(0)
    sends = [frame["id"] for frame in wire.sent if frame["type"] == "send"]
    assert len(sends) == 9
    assert len(set(sends)) == 1


def test_a_message_on_its_way_survives_a_reload(page: Page, wire: Wire) -> None:
    wire.is_down = True
    wire.cut()
    write(page, "Reloaded too soon.")
    expect(page.locator(".message.user")).to_contain_text("Reloaded too soon.")
    page.reload()
    expect(page.locator(".message.user")).to_contain_text("Reloaded too soon.")
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    wire.is_down = False
    assert is_whole(page)
    assert len(stored(page)) == 2


def test_an_unsent_message_can_be_taken_back(page: Page, wire: Wire) -> None:
    wire.is_down = True
    wire.cut()
    write(page, "On second thought.")
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.get_by_label("Message", exact=True)).to_have_value("On second thought.")
    assert [frame for frame in wire.sent if frame["type"] == "send"] == []


def test_who_is_signed_out_is_shown_the_door_and_keeps_the_text(page: Page, wire: Wire) -> None:
    page.get_by_label("Message", exact=True).fill("Not lost.")
    wire.close_code = 4401
    wire.cut(code=4401)
    expect(page.get_by_role("link", name="Sign in")).to_have_attribute("href", "/accounts/login/?next=%2F")
    expect(page.get_by_label("Message", exact=True)).to_have_value("Not lost.")


def test_a_short_cut_shows_no_banner(page: Page, wire: Wire) -> None:
    write(page, "Blink.")
    wait_text(page)
    wire.cut()
    wait_end(page)
    expect(page.get_by_text("Connection lost")).to_be_hidden()
    expect(last_answer(page).locator(".facts")).not_to_be_empty()
