"""Render a conversation with the model's chat template, keeping what users wrote apart from what the template says.

The template never sees a user's text: it gets a placeholder per turn, nobody can guess it, and the rendered result is
split there. So text can neither become a control token nor make the template take another branch; a template that trims
text trims nothing. Knows no tokens.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from chatproject.contract.messages import Turn
from workers.errors import RequestRejected
from workers.text.vocabulary import Vocabulary, read_json

log = logging.getLogger(__name__)

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_THINKING_END = "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a rendered conversation."""

    text: str
    is_template: bool  # else what somebody wrote: data


class ChatTemplate:
    """One model's chat template. Immutable, so any thread may use it."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        """Take a template's source; a missing or broken one is replaced by a plain one, which the log says."""
        self._special_tokens: dict[str, Any] = dict(special_tokens)
        self.is_fallback = False
        self._source = source or ""
        if source is None:
            log.warning("The model has no chat template; a plain ChatML one is used. Answers may be poor.")
        elif problem := self._problem():
            log.warning("The model's chat template does not work (%s); a plain ChatML one is used.", problem)
        else:
            return
        self._source = _CHATML
        self.is_fallback = True

    @classmethod
    def load(cls, directory: str | Path, vocabulary: Vocabulary) -> ChatTemplate:
        """Read the template of a model directory: chat_template.jinja, or in tokenizer_config.json."""
        path = Path(directory) / "chat_template.jinja"
        source: object = None
        if path.is_file():
            source = path.read_text(encoding="utf-8")
        else:
            source = (read_json(path.with_suffix(".json")) or {}).get("chat_template")
            source = source or vocabulary.settings.get("chat_template")
        if isinstance(source, list):
            named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
            source = named.get("default")
        return cls(source if isinstance(source, str) else None, vocabulary.special_tokens)

    def render(self, turns: Sequence[Turn], *, is_answer_next: bool = True) -> list[Part]:
        """Return the conversation in parts, with the head of the answer at the end.

        Raises RequestRejected when the template refuses such a conversation in every form that means the same.
        """
        try:
            return self._render(turns, is_answer_next=is_answer_next)
        except TemplateError as error:
            problem = error
        # Some templates know no system turn, or want users and assistants to take turns.
        for with_system in (True, False):
            try:
                return self._render(_folded(turns, with_system=with_system), is_answer_next=is_answer_next)
            except TemplateError as error:
                problem = error
        raise RequestRejected(f"The model's chat template refuses this conversation: {problem}") from problem

    def answer_end(self) -> str:
        """Return what the template writes between an answer and the next turn."""
        parts = self.render(
            [Turn(role="user", text="?"), Turn(role="assistant", text="!"), Turn(role="user", text="?")]
        )
        written = [index for index, part in enumerate(parts) if not part.is_template]
        after = parts[written[-2] + 1] if len(written) >= 2 else None
        return after.text if after is not None and after.is_template else ""

    def _problem(self) -> str | None:
        try:
            self.render([Turn(role="user", text="one")])
            self.answer_end()
            self.render([Turn(role="system", text="be kind"), Turn(role="user", text="one")])
        except RequestRejected as error:
            return str(error)
        except Exception as error:
            # A template is a program of someone else's; it may fail in any way.
            return f"{type(error).__name__}: {error}"
        return None

    def _render(self, turns: Sequence[Turn | _Joined], *, is_answer_next: bool) -> list[Part]:
        secret = secrets.token_hex(12)
        texts: list[str] = []
        messages = []
        for turn in turns:
            marks = []
            for text in turn.texts if isinstance(turn, _Joined) else (turn.text,):
                if turn.role == "assistant" and _THINKING_END in self._source:
                    # Such templates leave old reasoning out; this one cannot see it, so it is done for it.
                    text = text.rpartition(_THINKING_END)[2].lstrip("\n")
                marks.append(f"turn{secret}n{len(texts)}e")
                texts.append(text)
            messages.append({"role": turn.role, "content": "\n\n".join(marks)})
        rendered: str = render_jinja_template(
            conversations=[messages],
            chat_template=self._source,
            add_generation_prompt=is_answer_next,
            **self._special_tokens,
        )[0][0]
        pieces = re.split(f"turn{secret}n([0-9]+)e", rendered)
        if missing := set(range(len(texts))) - {int(index) for index in pieces[1::2]}:
            raise TemplateError(f"it leaves out turn {min(missing) + 1}")
        parts = []
        for index, piece in enumerate(pieces):
            if index % 2:
                parts.append(Part(text=texts[int(piece)], is_template=False))
            elif piece:
                parts.append(Part(text=piece, is_template=True))
        return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joined:
    """Texts that one turn carries together."""

    role: str
    texts: tuple[str, ...]


def _folded(turns: Sequence[Turn], *, with_system: bool) -> list[_Joined]:
    """Return the conversation with neighbours of one role joined, and system text in the first user turn."""
    system = tuple(turn.text for turn in turns if turn.role == "system")
    joined: list[_Joined] = []
    for turn in turns:
        if turn.role == "system" or (not joined and turn.role == "assistant"):
            continue
        if joined and joined[-1].role == turn.role:
            joined[-1] = _Joined(role=turn.role, texts=(*joined[-1].texts, turn.text))
        else:
            joined.append(_Joined(role=turn.role, texts=(turn.text,)))
    if system and with_system:
        return [_Joined(role="system", texts=system), *joined]
    if system and joined:
        joined[0] = _Joined(role="user", texts=(*system, *joined[0].texts))
    return joined
