"""The bodies of `/v1` as OpenAI's clients read them: chat and text completions, whole and in chunks."""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from typing import Any

from chatproject.api.answer import Accepted
from chatproject.contract.frames import End
from chatproject.contract.messages import Usage
from chatproject.generations.models import ServedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One endpoint's names for the same answer."""

    prefix: str  # of the receipt's id; the generation's id follows
    whole: str
    chunk: str
    is_chat: bool

    def body(self, accepted: Accepted, text: str, end: End) -> dict[str, Any]:
        """Return the whole answer."""
        answer = (
            {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
        )
        choice = {"index": 0, **answer, "logprobs": None, "finish_reason": str(end.reason)}
        return {**self._head(accepted, self.whole), "choices": [choice], "usage": usage(end.usage)}

    def first(self, accepted: Accepted, *, with_usage: bool) -> dict[str, Any] | None:
        """Return the chunk that opens the stream; text completions have none."""
        if not self.is_chat:
            return None
        return self._chunk(accepted, {"delta": {"role": "assistant", "content": ""}}, None, with_usage)

    def piece(self, accepted: Accepted, text: str, *, with_usage: bool) -> dict[str, Any]:
        """Return the chunk of a delta."""
        return self._chunk(accepted, {"delta": {"content": text}} if self.is_chat else {"text": text}, None, with_usage)

    def last(self, accepted: Accepted, end: End, *, with_usage: bool) -> dict[str, Any]:
        """Return the chunk that says why the answer ended."""
        nothing: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": ""}
        return self._chunk(accepted, nothing, str(end.reason), with_usage)

    def usage(self, accepted: Accepted, end: End) -> dict[str, Any]:
        """Return the chunk after the last, when the client asked for the usage."""
        return {**self._head(accepted, self.chunk), "choices": [], "usage": usage(end.usage)}

    def _chunk(self, accepted: Accepted, part: dict[str, Any], reason: str | None, with_usage: bool) -> dict[str, Any]:
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": reason}
        body = {**self._head(accepted, self.chunk), "choices": [choice]}
        return {**body, "usage": None} if with_usage else body

    def _head(self, accepted: Accepted, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}{accepted.generation_id}",
            "object": kind,
            "created": accepted.created,
            "model": accepted.model,
        }


CHAT = Shape(prefix="chatcmpl-", whole="chat.completion", chunk="chat.completion.chunk", is_chat=True)
TEXT = Shape(prefix="cmpl-", whole="text_completion", chunk="text_completion", is_chat=False)


def usage(used: Usage) -> dict[str, Any]:
    """Return the usage; ``dropped_turns`` is ours: how many of the oldest turns did not fit the context."""
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
        "dropped_turns": used.dropped_turns,
    }


def model(served: ServedModel) -> dict[str, Any]:
    """Return a model of the list."""
    created = calendar.timegm(served.created_at.utctimetuple())
    return {"id": served.slug, "object": "model", "created": created, "owned_by": "chatproject"}
