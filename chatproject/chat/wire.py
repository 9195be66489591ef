"""What a client is told over the chat socket: one JSON text per frame, exactly the promised fields.

Thousands of streams pass through `frame`, so a delta is joined by hand; only its text needs an encoder.
"""

from __future__ import annotations

import dataclasses
import json
from json.encoder import encode_basestring as _quoted
from typing import Any

from chatproject.chat.errors import Refused
from chatproject.contract.errors import FAILURE_TEXT, Failure, FinishReason
from chatproject.contract.frames import End, Frame
from chatproject.generations.streaming.reader import Queued, State


def frame(found: Frame) -> str:
    """Return ``started``, ``delta``, ``finished`` or ``failed``."""
    if found.kind == "delta":
        return (
            f'{{"type":"delta","generation":"{found.generation_id}","seq":{found.seq},'
            f'"at":{found.at},"text":{_quoted(found.text)}}}'
        )
    if found.kind == "started":
        return f'{{"type":"started","generation":"{found.generation_id}","seq":{found.seq}}}'
    assert found.end is not None
    return _dump({"generation": found.generation_id, "seq": found.seq, **_end(found.end)})


def accepted(*, client_id: str, conversation: str, message: str, generation: str, title: str, answer: str) -> str:
    """Return ``accepted``: the message is stored, and the answer will come."""
    return _dump(
        {
            "type": "accepted", "id": client_id, "conversation": conversation, "message": message,
            "generation": generation, "title": title, "answer": answer,
        }
    )  # fmt: skip


def queued(news: Queued) -> str:
    """Return ``queued``: the place among those that wait, and when it is this one's turn."""
    fields: dict[str, Any] = {
        "type": "queued", "generation": news.generation_id, "position": news.position, "eta_s": news.eta_s,
    }  # fmt: skip
    if news.reason is not None:
        fields["reason"] = news.reason
    return _dump(fields)


def state(found: State) -> str:
    """Return ``state``: the first word to a client that resumes."""
    fields: dict[str, Any] = {
        "type": "state", "generation": found.generation_id, "conversation": found.thread, "status": found.status,
        "seq": found.seq,
    }  # fmt: skip
    if found.text is not None:
        fields["text"] = found.text
    return _dump(fields)


def notice(*, conversation: str | None, generation: str, status: str) -> str:
    """Return ``notice``: a generation of this user was accepted or has ended, wherever it was sent from."""
    return _dump({"type": "notice", "conversation": conversation, "generation": generation, "status": status})


def error(refused: Refused, *, client_id: str | None = None, generation: str | None = None) -> str:
    """Return ``error``; ``client_id`` or ``generation`` says which frame was refused.

    With ``"unknown":true`` it may have been stored all the same: it is to be sent again under its id, after
    ``retry_after_s``, which finds out and counts once. Without, nothing of it was stored.
    """
    fields: dict[str, Any] = {"type": "error", "code": str(refused.code), "message": refused.message}
    if client_id is not None:
        fields["id"] = client_id
    if generation is not None:
        fields["generation"] = generation
    if refused.retry_after_s is not None:
        fields["retry_after_s"] = refused.retry_after_s
    if refused.is_unknown:
        fields["unknown"] = True
    # A message may name what the client wrote; in ASCII even half of a Unicode pair is valid JSON.
    return json.dumps(fields, separators=(",", ":"))


def _end(end: End) -> dict[str, Any]:
    if end.status in ("done", "cancelled"):
        usual = FinishReason.CANCELLED if end.status == "cancelled" else FinishReason.STOP
        return {
            "type": "finished", "reason": end.reason or usual, "usage": dataclasses.asdict(end.usage),
            "sha256": end.sha256,
        }  # fmt: skip
    code = end.code or (Failure.EXPIRED if end.status == "expired" else Failure.ENGINE_ERROR)
    return {"type": "failed", "code": code, "message": end.message or FAILURE_TEXT[code]}


def _dump(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
