"""What becomes of text on the page: Markdown made safe, drafts, input methods, the checks of an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from chatproject.chat import markdown
from tests.e2e.conftest import Running
from tests.e2e.page import READY, Person, stored, wait_end, write

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium", "redis")]

SAMPLES = [
    "One line.\nAnother one, *soft* and **strong** and ***both***, `code` and ~~gone~~.",
    "# Title\n\n## Second\n\nText\n\nSetext\n======\n\nUnder\n---\n\n***\n\nEnd",
    "- a\n- b\n  - c\n    - d\n- e\n\nafter",
    "1. one\n2. two\n\n   more of two\n3. three",
    "3. three\n4. four",
    "* loose\n\n* list\n\ntext",
    "- item\n  ```py\n  x = 1\n  ```\n- next",
    "```python\ndef f(x):\n    return x < 1 and '<b>'\n```",
    "~~~\nplain\n\nstill\n~~~\nafter",
    "```\nnever closed\n",
    "    indented code\n\ntext",
    "| a | b | c |\n|:--|:-:|--:|\n| 1 | `2|` | **3** |\n| x \\| y | z |",
    "> quoted\n> more\n\n> again\n>\n> - list",
    "[site](https://example.org/a?b=1&c=2 \"t\") and <https://example.org> and [mail](mailto:a@b.c)",
    "[no](javascript:alert(1)) ![pic](https://example.org/x.png) [rel](/x) [data](data:text/html,x)",
    "<script>alert(1)</script> <b onclick=x>bold</b> <img src=x onerror=alert(1)>",
    "snake_case_word and 2*3*4 and **a*b**c and _under_ and __dunder__ and *a **b** c*",
    "a \\*not\\* b \\` c \\[x\\](y) &amp; &lt;tag&gt; &#169; AT&T",
    "**bold:** text, **„quoted“** and *(paren)*",
    "``a `b` c`` and ` x ` and unclosed `tick",
    "line with two spaces  \nnext and backslash\\\nend",
    "Steps:\n1. first\n2. second\n- then\n- that",
    "a 🙂 b **🙂** 日本語**強調**です",
    "#no heading\n####### seven\n# \n\ntext #",
    "Text\n> quote at once\n\n- a\n\n\n- b\n\n\nend",
]  # fmt: skip


def drawn(page: Page, text: str, html: str) -> tuple[str, str]:
    """The elements while streaming, and those of the stored answer, both without highlighting."""
    return tuple(
        page.evaluate(
            """async ([text, html]) => {
              const {MarkdownView} = await import('/static/chat/markdown.js');
              const show = (draw) => {
                const box = document.createElement('div');
                draw(new MarkdownView(box));
                for (const span of box.querySelectorAll('code span')) span.replaceWith(...span.childNodes);
                box.normalize();
                const edges = /\\s*(<\\/?(p|li|ul|ol|blockquote|br)\\b[^>]*>)\\s*/g;
                return box.innerHTML.replace(/>\\s+</g, '><').replace(edges, '$1');
              };
              return [show((view) => view.draw(text)), show((view) => view.drawHtml(html))];
            }""",
            [text, html],
        )
    )


def sorted_attributes(html: str) -> str:
    return (
        html.replace(' title="t"', "")
        .replace(' rel="noopener noreferrer nofollow"', "")
        .replace(' target="_blank"', "")
    )


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_finished_answer_looks_as_it_did_while_it_streamed(shared: Page, sample: str) -> None:
    live, finished = drawn(shared, sample, markdown.render(sample))
    assert sorted_attributes(live) == sorted_attributes(finished)


@pytest.fixture(scope="module")
def shared(browser: Browser, service: Running, cookies: Any) -> Iterator[Page]:
    with Person(browser, service.url, storage_state=cookies) as person:
        yield person.tab()
    assert person.errors == []


def test_growing_text_ends_as_if_it_had_come_at_once(shared: Page) -> None:
    text = "\n\n".join(SAMPLES)
    grown, whole = shared.evaluate(
        """async (text) => {
          const {MarkdownView} = await import('/static/chat/markdown.js');
          const boxes = [document.createElement('div'), document.createElement('div')];
          const view = new MarkdownView(boxes[0]);
          for (let end = 0; end <= text.length; end += 7) view.draw(text.slice(0, end));
          view.draw(text);
          new MarkdownView(boxes[1]).draw(text);
          return boxes.map((box) => box.innerHTML);
        }""",
        text,
    )
    assert grown == whole


@pytest.mark.parametrize("bad", ["*" * 3000, "[" * 3000, "`a" * 1500, "> " * 500 + "x", "- " * 500 + "x", "a_*" * 1000])
def test_nasty_markdown_does_not_freeze_the_page(shared: Page, bad: str) -> None:
    took_ms = shared.evaluate(
        """async (text) => {
          const {MarkdownView} = await import('/static/chat/markdown.js');
          const start = performance.now();
          new MarkdownView(document.createElement('div')).draw(text);
          return performance.now() - start;
        }""",
        bad,
    )
    assert took_ms < 1500


@pytest.mark.parametrize("text", ["", "abc", "é🙂\n" * 50, "x" * 55, "x" * 56, "x" * 64, "y" * 1000])
def test_the_checksum_is_sha256(shared: Page, text: str) -> None:
    found = shared.evaluate("(text) => import('/static/chat/sha256.js').then(({sha256}) => sha256(text))", text)
    assert found == hashlib.sha256(text.encode()).hexdigest()


def take(page: Page, *frames: dict[str, Any]) -> Any:
    return page.evaluate(
        """async (frames) => {
          const {LiveAnswer} = await import('/static/chat/live_answer.js');
          const live = new LiveAnswer('g');
          const outcomes = frames.map((frame) => live.take(frame));
          return {outcomes, text: live.text, seq: live.seq};
        }""",
        list(frames),
    )


STARTED = {"type": "started", "seq": 1}


def test_a_gap_is_asked_for_again_and_a_repeat_is_ignored(shared: Page) -> None:
    first = {"type": "delta", "seq": 2, "at": 0, "text": "🙂a"}
    found = take(shared, STARTED, first, first, {"type": "delta", "seq": 4, "at": 9, "text": "x"})
    assert found == {"outcomes": ["applied", "applied", "old", "lost"], "text": "🙂a", "seq": 2}


def test_positions_count_characters_as_the_service_does(shared: Page) -> None:
    found = take(
        shared, STARTED, {"type": "delta", "seq": 2, "at": 0, "text": "🙂🙂"},
        {"type": "delta", "seq": 3, "at": 2, "text": "!"},
    )  # fmt: skip
    assert found["text"] == "🙂🙂!"


def test_a_text_that_does_not_fit_is_taken_again_from_the_start(shared: Page) -> None:
    found = take(shared, STARTED, {"type": "delta", "seq": 2, "at": 5, "text": "later"})
    assert found == {"outcomes": ["applied", "lost"], "text": "", "seq": 0}


def test_a_wrong_checksum_is_taken_again_from_the_start(shared: Page) -> None:
    found = take(
        shared,
        STARTED,
        {"type": "delta", "seq": 2, "at": 0, "text": "x"},
        {"type": "finished", "seq": 3, "sha256": "0"},
    )
    assert found == {"outcomes": ["applied", "applied", "lost"], "text": "", "seq": 0}


NO_WORKER = "No worker is running. Your message is kept and will be answered when one starts."


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ({"position": 1, "eta_s": None}, "Next in the queue."),
        ({"position": 3, "eta_s": 12.3}, "3rd in the queue, about 12 s."),
        ({"position": 11, "eta_s": 300}, "11th in the queue, about 5 min."),
        ({"position": 1, "eta_s": None, "reason": "no_worker"}, NO_WORKER),
    ],
)  # fmt: skip
def test_waiting_is_told_honestly(shared: Page, frame: dict[str, Any], said: str) -> None:
    assert (
        shared.evaluate("(frame) => import('/static/chat/wait_text.js').then(({waitText}) => waitText(frame))", frame)
        == said
    )


def test_a_draft_survives_a_reload_and_goes_when_it_was_sent(page: Page) -> None:
    page.get_by_label("Message", exact=True).fill("Half a thou")
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_have_value("Half a thou")
    write(page, "Half a thought.")
    wait_end(page)
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    page.get_by_role("link", name="New chat", exact=True).click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.get_by_label("Message", exact=True)).to_have_value("")


@pytest.mark.parametrize(("draft", "shown"), [("", "Typed early"), ("Before", "Before\nTyped early")])
def test_what_is_typed_while_the_page_still_loads_is_kept(page: Page, draft: str, shown: str) -> None:
    page.get_by_label("Message", exact=True).fill(draft)
    held: list[Route] = []
    page.route("**/chat/main.js*", lambda route: held.append(route))
    with page.expect_request("**/chat/main.js*"):
        page.reload(wait_until="commit")
    page.get_by_label("Message", exact=True).fill("Typed early")
    assert page.locator(READY).count() == 0
    for route in held:
        route.continue_()
    page.wait_for_selector(READY)
    expect(page.get_by_label("Message", exact=True)).to_have_value(shown)
    page.unroute("**/chat/main.js*")
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_have_value(shown)


def test_enter_of_an_input_method_picks_a_word_and_sends_nothing(page: Page) -> None:
    box = page.get_by_label("Message", exact=True)
    box.focus()
    session = page.context.new_cdp_session(page)
    session.send("Input.imeSetComposition", {"text": "にほ", "selectionStart": 2, "selectionEnd": 2})
    for kind in ("rawKeyDown", "keyUp"):
        session.send(
            "Input.dispatchKeyEvent", {"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
        )
    expect(page.locator(".message")).to_have_count(0)
    session.send("Input.insertText", {"text": "日本"})
    expect(box).to_have_value("日本")
    box.press("Shift+Enter")
    box.press_sequentially("は")
    expect(box).to_have_value("日本\nは")
    box.press("Enter")
    wait_end(page)
    assert stored(page)[0]["text"] == "日本\nは"


def test_a_refused_text_comes_back_with_the_reason(page: Page) -> None:
    page.evaluate("localStorage.setItem('chat.params', JSON.stringify({stop: 'x'.repeat(100)}))")
    page.reload()
    box = page.get_by_label("Message", exact=True)
    too_long = "word " * 9000
    write(page, too_long)
    expect(page.locator("[data-problem]")).to_be_visible()
    expect(box).to_have_value(too_long.strip())
    expect(page.locator(".message")).to_have_count(0)
    page.reload()
    expect(box).to_have_value(too_long.strip())
    box.fill("")


def test_scrolling_up_lets_go_and_a_button_brings_back(alice: Person) -> None:
    page = alice.tab()
    page.set_viewport_size({"width": 800, "height": 420})
    page.evaluate("localStorage.setItem('chat.params', JSON.stringify({max_tokens: '700'}))")
    page.reload()
    write(page, "Fill the screen.")
    scroller = page.locator("[data-scroller]")
    top = "(box) => box.scrollTop"
    while scroller.evaluate("(box) => box.scrollHeight - box.clientHeight") < 300:
        page.wait_for_timeout(50)
    assert scroller.evaluate("(box) => box.scrollHeight - box.clientHeight - box.scrollTop") < 60
    scroller.hover()
    page.mouse.wheel(0, -260)
    expect(page.get_by_role("button", name="Jump to latest")).to_be_visible()
    before = scroller.evaluate(top)
    height = scroller.evaluate("(box) => box.scrollHeight")
    while scroller.evaluate("(box) => box.scrollHeight") == height:
        page.wait_for_timeout(50)
    assert scroller.evaluate(top) == before
    page.get_by_role("button", name="Jump to latest").click()
    expect(page.get_by_role("button", name="Jump to latest")).to_be_hidden()
    assert scroller.evaluate("(box) => box.scrollHeight - box.clientHeight - box.scrollTop") < 60
    page.get_by_role("button", name="Stop the answer").click()
    wait_end(page)
