"""The bodies of `/v1` as OpenAI's clients read them: chat and text completions, whole and in chunks."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatproject.api.answer import Accepted
from chatproject.contract.frames import End, TokenLogprob
from chatproject.contract.messages import Usage
from chatproject.generations.models import ServedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One endpoint's names for the same answer."""

    prefix: str  # of the receipt's id; the generation's id follows
    whole: str
    chunk: str
    is_chat: bool

    def body(
        self, accepted: Accepted, text: str, end: End, logprobs: Sequence[TokenLogprob] | None = None
    ) -> dict[str, Any]:
        """Return the whole answer; ``logprobs`` is None where nobody asked for them."""
        answer = (
            {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
        )
        # Where there is text and no logprob its log is gone, and they with it.
        told = None if logprobs is None or (text and not logprobs) else _logprobs(logprobs)
        choice = {"index": 0, **answer, "logprobs": told, "finish_reason": str(end.reason)}
        return {**self._head(accepted, self.whole), "choices": [choice], "usage": usage(end.usage)}

    def first(self, accepted: Accepted, *, with_usage: bool) -> dict[str, Any] | None:
        """Return the chunk that opens the stream; text completions have none."""
        if not self.is_chat:
            return None
        return self._chunk(accepted, {"delta": {"role": "assistant", "content": ""}}, None, with_usage)

    def piece(
        self, accepted: Accepted, text: str, logprobs: Sequence[TokenLogprob] | None = None, *, with_usage: bool
    ) -> dict[str, Any]:
        """Return the chunk of a delta."""
        part: dict[str, Any] = {"delta": {"content": text}} if self.is_chat else {"text": text}
        if logprobs:
            part["logprobs"] = _logprobs(logprobs)
        return self._chunk(accepted, part, None, with_usage)

    def last(self, accepted: Accepted, end: End, *, with_usage: bool) -> dict[str, Any]:
        """Return the chunk that says why the answer ended."""
        nothing: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": ""}
        return self._chunk(accepted, nothing, str(end.reason), with_usage)

    def usage(self, accepted: Accepted, end: End) -> dict[str, Any]:
        """Return the chunk after the last, when the client asked for the usage."""
        return {**self._head(accepted, self.chunk), "choices": [], "usage": usage(end.usage)}

    def _chunk(self, accepted: Accepted, part: dict[str, Any], reason: str | None, with_usage: bool) -> dict[str, Any]:
        choice = {"index": 0, "logprobs": None, **part, "finish_reason": reason}
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


def _logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            **_token(item.piece, item.logprob),
            "top_logprobs": [_token(piece, logprob) for piece, logprob in item.top],
        }
        for item in logprobs
    ]
    return {"content": content, "refusal": None}


def _token(piece: bytes, logprob: float) -> dict[str, Any]:
    # Part of a character shows as U+FFFD; the bytes, joined over tokens, are exact.
    return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}


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
