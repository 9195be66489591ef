"""Turn a finished answer into HTML that is safe to show: Markdown, highlighted code, nothing that runs or loads.

Knows text only. Three walls: the parser takes no HTML, links are http(s) or mail, and nh3 lets through a short list of
tags. Pictures become links, because loading one would tell its server what the model wrote. About 10 ms for 3 kB, so
callers render once per answer; the last ones are remembered.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Final

import nh3
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

MAX_HIGHLIGHTED: Final = 40_000  # characters of one code block; a lexer is slow on more
_SCHEME: Final = re.compile(r"(?:https?://|mailto:)[^\s]", re.IGNORECASE)
_TAGS: Final = frozenset({
    "p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "strong", "em", "s", "a", "code", "pre",
    "span", "blockquote", "table", "thead", "tbody", "tr", "th", "td",
})  # fmt: skip
_ATTRIBUTES: Final = {
    "a": {"href", "title", "target"},
    "code": {"class"},
    "span": {"class"},
    "ol": {"start"},
    "th": {"class"},
    "td": {"class"},
}


@functools.lru_cache(maxsize=512)
def render(text: str) -> SafeString:
    """Return ``text`` as HTML whose every tag and attribute is on the list above."""
    html = _parser().render(text)
    cleaned = nh3.clean(
        html,
        tags=set(_TAGS),
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
    return mark_safe(cleaned)  # noqa: S308 - nh3 has just cleaned it


def code_css() -> str:
    """Return the colours of highlighted code, light and dark in one rule; `static/css/code.css` is this text."""
    light, dark = (get_style_by_name(name) for name in ("default", "github-dark"))
    rules = ["/* Made by chatproject.chat.markdown.code_css(); a test holds this file to it. */"]
    for token, name in sorted(STANDARD_TYPES.items(), key=lambda item: item[1]):
        styles = light.style_for_token(token), dark.style_for_token(token)
        colours = [f"#{style['color']}" if style["color"] else "inherit" for style in styles]
        declarations = []
        if name and colours != ["inherit", "inherit"]:
            ink = [colour.replace("inherit", "currentcolor") for colour in colours]
            declarations.append(f"color: light-dark({ink[0]}, {ink[1]})")
        if name and styles[0]["bold"]:
            declarations.append("font-weight: 600")
        if name and styles[0]["italic"]:
            declarations.append("font-style: italic")
        if declarations:
            rules.append(f".code .{name} {{ {'; '.join(declarations)} }}")
    return "\n".join(rules) + "\n"


@functools.cache
def _parser() -> MarkdownIt:
    # breaks: what a model writes on its own line is meant to stand on its own line, as while it streamed.
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "highlight": _highlight})
    parser.enable(["table", "strikethrough"])
    parser.validateLink = lambda url: _SCHEME.match(url) is not None  # type: ignore[method-assign]
    parser.add_render_rule("image", _picture)
    parser.add_render_rule("link_open", _link)
    for cell in ("th_open", "td_open"):
        parser.add_render_rule(cell, _cell)
    return parser


def _highlight(code: str, language: str, attributes: str) -> str:
    if not language or len(code) > MAX_HIGHLIGHTED:
        return escape(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return escape(code)
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True)))


def _picture(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    source = str(token.attrGet("src") or "")
    label = escape(token.content or source)
    return f'<a href="{escape(source)}" target="_blank">{label}</a>' if source else label


def _link(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("target", "_blank")
    return self.renderToken(tokens, index, options, env)


def _cell(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    # markdown-it aligns with a style attribute, which the page's policy forbids: a class says the same.
    style = str(tokens[index].attrs.pop("style", ""))
    if ":" in style:
        tokens[index].attrSet("class", f"align-{style.partition(':')[2].strip(' ;')}")
    return self.renderToken(tokens, index, options, env)
