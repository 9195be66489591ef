"""Frames: what a reader is shown of a generation, and how they lie in the log and travel in the channel layer.

Log entries are ``<run>-<seq>`` in stream ``gen:<id>``. Because a claim writes ``<run>-0`` and Redis refuses smaller ids
from then on, the log read from its start is the answer: no entry of an older run can follow one of a newer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from chatproject.contract.errors import ContractError, Failure, FinishReason
from chatproject.contract.messages import Usage

CHANNEL_MESSAGE_TYPE: Final = "generation.frames"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model found a token, and those it found likeliest, best first. Natural logarithms.

    A token is its bytes: a character may be spread over several tokens.
    """

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()

    def wire(self) -> list[Any]:
        """Return it as JSON can carry it, each byte as the character of that number."""
        return [self.piece.decode("latin-1"), self.logprob, [[piece.decode("latin-1"), x] for piece, x in self.top]]

    @classmethod
    def from_wire(cls, fields: Sequence[Any]) -> TokenLogprob:
        """Read what `wire` returned. Raises ValueError, TypeError and AttributeError for anything else."""
        piece, logprob, top = fields
        return cls(
            piece.encode("latin-1"), float(logprob), tuple((other.encode("latin-1"), float(x)) for other, x in top)
        )


class Frame(NamedTuple):
    """One numbered piece of a generation, as it travels from the worker to every reader.

    ``started`` is seq 1, once. ``delta`` carries text that begins after ``at`` characters of the answer. ``end`` is the
    last; its seq is one past the last delta.
    """

    generation_id: str
    run: int  # of the worker that wrote it; a reader ignores lower ones
    seq: int  # 1, 2, 3, ... per generation
    kind: Literal["started", "delta", "end"]
    at: int = 0  # characters of the answer before this frame
    text: str = ""  # complete UTF-8, one or more tokens; empty for started and end
    tokens: tuple[int, ...] = ()  # ids behind ``text``, and those it still holds back; only in the log
    end: End | None = None
    logprobs: tuple[TokenLogprob, ...] = ()  # one for each of ``tokens``, when the request asked for them

    def entry(self) -> dict[str, str]:
        """Return the fields of the log entry."""
        fields = {"k": self.kind, "at": str(self.at)}
        if self.text:
            fields["t"] = self.text
        if self.tokens:
            fields["n"] = ",".join(map(str, self.tokens))
        if self.logprobs:
            fields["lp"] = json.dumps([item.wire() for item in self.logprobs], separators=(",", ":"))
        if self.end is not None:
            fields.update(self.end.entry())
        return fields

    def wire(self) -> list[Any]:
        """Return the frame for the channel layer: a flat list, without token ids; logprobs last where there are any."""
        end = self.end.entry() if self.end is not None else None
        wire = [self.generation_id, self.run, self.seq, self.kind, self.at, self.text, end]
        return [*wire, [item.wire() for item in self.logprobs]] if self.logprobs else wire


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a generation ended. The first one in the log decides, whoever wrote it."""

    status: Literal["done", "cancelled", "failed", "expired"]
    reason: FinishReason | None = None  # of done and cancelled
    code: Failure | None = None  # of failed and expired
    message: str = ""  # of failed and expired: one sentence for the user
    usage: Usage = Usage()
    sha256: str = ""  # of the whole answer; known once it is stored

    def entry(self) -> dict[str, str]:
        """Return the end's fields of the log entry."""
        return {
            "status": self.status,
            "reason": self.reason or "",
            "code": self.code or "",
            "message": self.message,
            "usage": self.usage.to_json(),
            "sha256": self.sha256,
        }

    @classmethod
    def from_entry(cls, fields: Mapping[str, str]) -> End:
        """Read an end. Raises ContractError when a field is missing or unknown."""
        status = fields.get("status", "")
        if status not in ("done", "cancelled", "failed", "expired"):
            raise ContractError(f"not an end: status {status!r}")
        try:
            return cls(
                status=status,  # type: ignore[arg-type]
                reason=FinishReason(fields["reason"]) if fields.get("reason") else None,
                code=Failure(fields["code"]) if fields.get("code") else None,
                message=fields.get("message", ""),
                usage=Usage.from_json(fields.get("usage") or "{}"),
                sha256=fields.get("sha256", ""),
            )
        except ValueError as error:
            raise ContractError(f"not an end: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A generation log, folded: what was shown so far and how to go on."""

    run: int = 0  # of the last start; 0 = nobody has claimed it yet
    seq: int = 0  # of the last frame; 0 = none
    text: str = ""
    tokens: tuple[int, ...] = ()
    frames: tuple[Frame, ...] = ()
    end: End | None = None
    end_seq: int = 0
    is_stored: bool = False


def fold(generation_id: str, entries: Iterable[tuple[str, Mapping[str, str]]]) -> Log:
    """Fold the entries of ``gen:<id>``, oldest first. Raises ContractError on a gap or an unknown kind."""
    run = seq = end_seq = 0
    text: list[str] = []
    length = 0
    tokens: list[int] = []
    frames: list[Frame] = []
    end: End | None = None
    stored = False
    for entry_id, fields in entries:
        entry_run, entry_seq = parse_entry_id(entry_id)
        run = max(run, entry_run)
        kind = fields.get("k", "")
        if kind == "start":
            continue
        if kind == "stored":
            stored = True
            continue
        if kind not in ("started", "delta", "end") or end is not None:
            raise ContractError(f"log of {generation_id}: entry {entry_id} of kind {kind!r} has no place there")
        if entry_seq != seq + 1:
            raise ContractError(f"log of {generation_id}: {entry_id} follows seq {seq}")
        seq = entry_seq
        ids = tuple(map(int, fields["n"].split(","))) if fields.get("n") else ()
        if kind == "end":
            end, end_seq = End.from_entry(fields), seq
            if not end.sha256:  # written by others than a worker, who did not look at the text
                end = replace(end, sha256=answer_sha256("".join(text)))
        frame = Frame(
            generation_id=generation_id, run=entry_run, seq=seq, kind=kind,  # type: ignore[arg-type]
            at=int(fields.get("at") or 0), text=fields.get("t", ""), tokens=ids, end=end,
            logprobs=_logprobs(fields.get("lp"), entry_id),
        )  # fmt: skip
        if frame.at != length and kind == "delta":
            raise ContractError(f"log of {generation_id}: {entry_id} starts at {frame.at}, not {length}")
        frames.append(frame)
        text.append(frame.text)
        length += len(frame.text)
        tokens.extend(ids)
    return Log(
        run=run, seq=seq, text="".join(text), tokens=tuple(tokens), frames=tuple(frames),
        end=end, end_seq=end_seq, is_stored=stored,
    )  # fmt: skip


def _logprobs(text: str | None, entry_id: str) -> tuple[TokenLogprob, ...]:
    if not text:
        return ()
    try:
        return tuple(TokenLogprob.from_wire(item) for item in json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise ContractError(f"the logprobs of entry {entry_id} cannot be read: {error}") from error


def parse_entry_id(entry_id: str) -> tuple[int, int]:
    """Split ``<run>-<seq>``."""
    run, _, seq = entry_id.partition("-")
    return int(run), int(seq)


def answer_sha256(text: str) -> str:
    """Return the checksum that ``finished`` carries, so that a reader can prove it saw the whole answer."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def channel_message(frames: Sequence[Frame]) -> dict[str, Any]:
    """Return one channel-layer message with the frames of one step for one web process."""
    return {"type": CHANNEL_MESSAGE_TYPE, "frames": [frame.wire() for frame in frames]}


def frames_of_message(message: Mapping[str, Any]) -> list[Frame]:
    """Read a channel-layer message. Raises ContractError when it is not one of frames."""
    if message.get("type") != CHANNEL_MESSAGE_TYPE:
        raise ContractError(f"not a frame message: {message.get('type')!r}")
    try:
        return [
            Frame(
                id_,
                run,
                seq,
                kind,
                at,
                text,
                end=End.from_entry(end) if end is not None else None,
                # What a newer side adds behind the logprobs is left out.
                logprobs=tuple(TokenLogprob.from_wire(item) for item in more[0]) if more else (),
            )
            for id_, run, seq, kind, at, text, end, *more in message["frames"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContractError(f"not a frame message: {error}") from error
