"""The main job in a real browser, through every real process: write, watch, stop, reload, change, delete."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import APIResponse, Page, Route, expect

from tests.e2e.page import Person, last_answer, stored, wait_end, wait_text, write

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium", "redis")]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def test_an_answer_streams_and_is_what_was_stored(page: Page) -> None:
    write(page, "Tell me about rivers.")
    early = wait_text(page)
    expect(page).to_have_url(re.compile(r"/c/[\da-f-]{36}$"))
    whole = wait_end(page)
    assert len(early) < len(whole)
    question, answer = stored(page)
    assert question["text"] == "Tell me about rivers."
    assert squeezed(whole) == squeezed(answer["text"])
    expect(page).to_have_title("Tell me about rivers. · Chat")
    expect(page.locator(".row.is-current a")).to_have_text("Tell me about rivers.")
    expect(last_answer(page).locator(".facts")).to_contain_text("60 tokens")


def test_a_finished_answer_is_announced_once_and_whole(page: Page) -> None:
    page.evaluate(
        """() => {
          window.said = [];
          const region = document.getElementById('announcer');
          new MutationObserver(() => region.textContent && said.push(region.textContent))
            .observe(region, {childList: true, characterData: true, subtree: true});
        }"""
    )
    write(page, "Say something.")
    whole = wait_end(page)
    expect(page.locator("#announcer")).not_to_be_empty()
    assert [squeezed(said) for said in page.evaluate("said")] == [squeezed(f"Answer: {whole}")]


def test_stop_keeps_what_was_written(alice: Person, page: Page) -> None:
    page.evaluate("localStorage.setItem('chat.params', JSON.stringify({max_tokens: '900'}))")
    page.reload()
    write(page, "Count very far.")
    wait_text(page, 60)
    page.get_by_role("button", name="Stop the answer").click()
    whole = wait_end(page)
    _, answer = stored(page)
    assert answer["status"] == "cancelled"
    assert squeezed(answer["text"]) == squeezed(whole)
    expect(last_answer(page).locator(".facts")).to_contain_text("Stopped")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_reload_mid_answer_goes_on_without_gap_or_repeat(page: Page) -> None:
    page.evaluate("localStorage.setItem('chat.params', JSON.stringify({max_tokens: '200'}))")
    page.reload()
    write(page, "A long one, please.")
    wait_text(page, 80)
    page.reload()
    after = wait_text(page, 80)
    whole = wait_end(page)
    answer = stored(page)[1]["text"]
    assert squeezed(whole) == squeezed(answer)
    assert squeezed(whole).startswith(squeezed(after)[:60])


def test_a_second_tab_shows_the_same_answer_live(alice: Person, page: Page) -> None:
    write(page, "First, in one tab.")
    wait_end(page)
    other = alice.tab(page.url.removeprefix(alice.url))
    page.evaluate("localStorage.setItem('chat.params', JSON.stringify({max_tokens: '200'}))")
    write(page, "Second, watched in both.")
    expect(other.locator(".message.user").last).to_contain_text("Second, watched in both.")
    wait_text(other, 30)
    expect(other.get_by_role("button", name="Stop the answer")).to_be_visible()
    assert wait_end(page) == wait_end(other)


def test_another_chat_in_another_tab_appears_in_the_list(alice: Person, page: Page) -> None:
    other = alice.tab()
    write(page, "Zebra stripes, why?")
    expect(other.locator(".row a").first).to_have_text("Zebra stripes, why?")
    wait_end(page)


def test_edit_replaces_the_message_and_what_followed(page: Page) -> None:
    write(page, "What is a vulcano?")
    first = wait_end(page)
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit and send again").click()
    box = page.get_by_label("Edit the message")
    expect(box).to_have_value("What is a vulcano?")
    box.fill("What is a volcano?")
    box.press("Enter")
    expect(page.locator(".message.user:visible")).to_have_text("What is a volcano?")
    second = wait_end(page)
    assert first != second
    assert [message["text"] for message in stored(page) if message["role"] == "user"] == ["What is a volcano?"]
    expect(page.locator(".message.answer")).to_have_count(1)


def test_answer_again_replaces_the_answer(page: Page) -> None:
    write(page, "Once more, with feeling.")
    wait_end(page)
    before = stored(page)[1]["generation"]
    page.get_by_role("button", name="Answer again").click()
    page.wait_for_selector(".message.answer.is-live")
    wait_end(page)
    _, answer = stored(page)
    assert answer["generation"] != before
    expect(page.locator(".message")).to_have_count(2)


def test_copy_gives_the_answer_as_it_was_written(page: Page) -> None:
    write(page, "Copy this.")
    wait_end(page)
    page.get_by_role("button", name="Copy the answer").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == stored(page)[1]["text"]


def test_rename_stays_after_a_reload(page: Page) -> None:
    write(page, "Give me a name.")
    wait_end(page)
    page.get_by_role("button", name="Rename Give me a name.").click()
    page.get_by_label("Title", exact=True).fill("A better name")
    page.get_by_label("Title", exact=True).press("Enter")
    expect(page.locator("h1")).to_have_text("A better name")
    page.reload()
    expect(page.locator(".row.is-current a")).to_have_text("A better name")


def test_delete_asks_first_and_then_it_is_gone(page: Page) -> None:
    write(page, "Delete me later.")
    wait_end(page)
    address = page.url
    page.get_by_role("button", name="Delete Delete me later.").click()
    page.get_by_role("button", name="Keep it").click()
    expect(page.locator(".row.is-current")).to_be_visible()
    page.get_by_role("button", name="Delete Delete me later.").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
    assert page.request.get(address).status == 404


def test_deleting_while_it_answers_leaves_a_clean_page(page: Page) -> None:
    page.evaluate("localStorage.setItem('chat.params', JSON.stringify({max_tokens: '900'}))")
    page.reload()
    write(page, "Gone in a moment.")
    wait_text(page)
    page.get_by_role("button", name="Delete Gone in a moment.").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    expect(page.locator(".row a", has_text="Gone in a moment.")).to_have_count(0)


def test_a_list_read_before_a_delete_does_not_bring_the_chat_back(page: Page) -> None:
    write(page, "Gone while the list is read.")
    wait_end(page)
    page.reload()  # no notice is on its way now
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/c/?q=read", lambda route: held.append((route, route.fetch())))
    with page.expect_request("**/c/?q=read"):
        page.get_by_label("Search chats").fill("read")
    page.get_by_role("button", name="Delete Gone while the list is read.").click()
    with page.expect_response("**/delete"):
        page.get_by_role("button", name="Delete", exact=True).click()
    deleted = page.locator(".row a", has_text="Gone while the list is read.")
    expect(deleted).to_have_count(0)
    [(route, response)] = held
    with page.expect_response("**/c/?q=read"):
        route.fulfill(response=response)
    page.evaluate("fetch('/livez').then(() => new Promise(requestAnimationFrame))")  # it is drawn by then
    expect(deleted).to_have_count(0, timeout=1)


def test_search_finds_a_chat(page: Page) -> None:
    write(page, "Quokkas smile a lot.")
    wait_end(page)
    page.get_by_label("Search chats").fill("quokka")
    expect(page.locator(".row a")).to_have_count(1)
    expect(page.locator(".row a")).to_have_text("Quokkas smile a lot.")
    page.get_by_label("Search chats").fill("no such words")
    expect(page.get_by_text("Nothing found.")).to_be_visible()


def test_back_and_forward_change_the_conversation(page: Page) -> None:
    write(page, "The first chat.")
    wait_end(page)
    page.get_by_role("link", name="New chat", exact=True).click()
    expect(page.locator(".message")).to_have_count(0)
    write(page, "The second chat.")
    wait_end(page)
    page.go_back()
    expect(page.locator(".message.user")).to_have_text("The first chat.")
    page.go_forward()
    expect(page.locator(".message.user")).to_have_text("The second chat.")
