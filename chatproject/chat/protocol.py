"""What a client may say over the chat socket: a text frame in, a typed frame out, or Refused naming what is wrong.

Closed: an unknown type or field is refused by name, so that a typing error is not silence. Knows no user and no
database; JSON's own traps (NaN, depth, huge integers, broken Unicode, the same name twice) end here.
"""

from __future__ import annotations

import json
import re
import unicodedata
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from chatproject.chat.errors import Refusal, Refused
from chatproject.contract.names import is_model_slug
from chatproject.generations.admission import Params, parse_params

MAX_FRAME_BYTES: Final = 65_536
MAX_TEXT_CHARACTERS: Final = 32_000
_MAX_SEQ: Final = 2**31
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_BROKEN = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """A message of the user. ``replaces`` is an edit: that message and all after it give way."""

    id: str  # the client's own uuid; the same again is the same message
    text: str
    conversation: uuid.UUID | None = None  # None: a new one
    params: Params = Params()
    model: str | None = None  # slug
    replaces: uuid.UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Regenerate:
    """Answer the same user message again; ``generation`` is the answer that gives way."""

    id: str
    generation: uuid.UUID
    params: Params = Params()
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End this answer where it is."""

    generation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Tell all of this answer after ``after``, and go on telling; 0 = from its beginning."""

    generation: str
    after: int


Inbound = Send | Regenerate | Stop | Resume


def check_size(text: str | None) -> str:
    """Return a frame that is text and not too long. Raises Refused(bad_frame); ``None`` stands for a binary frame."""
    if text is None:
        raise Refused(Refusal.BAD_FRAME, "Binary frames are not understood. Send JSON as text.")
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_FRAME_BYTES:
        raise Refused(
            Refusal.BAD_FRAME, f"The frame has {size:,} bytes; at most {MAX_FRAME_BYTES:,} are taken. Shorten the text."
        )
    return text


def decode(text: str | None) -> dict[str, Any]:
    """Return the JSON object of one frame. Raises Refused(bad_frame), also where `check_size` does."""
    text = check_size(text)
    try:
        fields = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except _Twice as error:
        raise Refused(Refusal.BAD_FRAME, f"The field {_shown(error.name)} stands twice in one object.") from error
    except (ValueError, RecursionError) as error:
        raise Refused(Refusal.BAD_FRAME, "The frame is not JSON. Send one JSON object.") from error
    if not isinstance(fields, dict):
        raise Refused(Refusal.BAD_FRAME, "The frame is JSON, but not an object.")
    return fields


def parse(fields: dict[str, Any]) -> Inbound:
    """Return the typed frame. Raises Refused: bad_frame for its type, else a code that names the field."""
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _READERS:
        given = f"{_shown(kind)} is unknown" if isinstance(kind, str) else "must be a string"
        raise Refused(Refusal.BAD_FRAME, f"type {given}. Known: {', '.join(_READERS)}.")
    read, known = _READERS[kind]
    for name in fields:
        if name != "type" and name not in known:
            raise Refused(Refusal.BAD_PARAMS, f"The field {_shown(name)} is unknown. Known: {', '.join(known)}.")
    return read(fields)


def client_id_of(fields: dict[str, Any]) -> str | None:
    """Return the frame's own id, to be named in an error; None when it has no proper one."""
    value = fields.get("id")
    return value if isinstance(value, str) and _UUID.fullmatch(value) else None


def generation_of(fields: dict[str, Any]) -> str | None:
    """Return the generation a frame speaks of, to be named in an error; None when it names no proper one."""
    value = fields.get("generation")
    return value if isinstance(value, str) and _UUID.fullmatch(value) else None


def _send(fields: dict[str, Any]) -> Send:
    return Send(
        id=_id(fields, "id"), text=_text(fields), conversation=_optional_uuid(fields, "conversation"),
        params=parse_params(fields.get("params")), model=_model(fields), replaces=_optional_uuid(fields, "replaces"),
    )  # fmt: skip


def _regenerate(fields: dict[str, Any]) -> Regenerate:
    return Regenerate(
        id=_id(fields, "id"), generation=uuid.UUID(_id(fields, "generation")),
        params=parse_params(fields.get("params")), model=_model(fields),
    )  # fmt: skip


def _stop(fields: dict[str, Any]) -> Stop:
    return Stop(generation=_id(fields, "generation"))


def _resume(fields: dict[str, Any]) -> Resume:
    after = fields.get("after", 0)
    if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after < _MAX_SEQ:
        raise Refused(Refusal.BAD_CURSOR, "after must be the seq of the last frame you have; 0 = from the beginning.")
    return Resume(generation=_id(fields, "generation"), after=after)


_READERS: Final[dict[str, tuple[Callable[[dict[str, Any]], Inbound], tuple[str, ...]]]] = {
    "send": (_send, ("id", "conversation", "text", "params", "model", "replaces")),
    "regenerate": (_regenerate, ("id", "generation", "params", "model")),
    "stop": (_stop, ("generation",)),
    "resume": (_resume, ("generation", "after")),
}


def _id(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise Refused(Refusal.BAD_PARAMS, f"{name} must be a UUID in lower case, with hyphens.")
    return value


def _optional_uuid(fields: dict[str, Any], name: str) -> uuid.UUID | None:
    return None if fields.get(name) is None else uuid.UUID(_id(fields, name))


def _text(fields: dict[str, Any]) -> str:
    text = fields.get("text")
    if not isinstance(text, str):
        raise Refused(Refusal.BAD_PARAMS, "text must be a string.")
    if _BROKEN.search(text):
        raise Refused(Refusal.BAD_PARAMS, "text holds a NUL character or half of a Unicode pair. Remove it.")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise Refused(
            Refusal.TEXT_TOO_LONG,
            f"The message has {len(text):,} characters; at most {MAX_TEXT_CHARACTERS:,} are taken. "
            "Shorten it, or send it in parts.",
        )
    # Invisible characters (zero-width spaces, joiners) alone are no message either.
    if all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text):
        raise Refused(Refusal.EMPTY_TEXT)
    return text


def _model(fields: dict[str, Any]) -> str | None:
    model = fields.get("model")
    if model is None:
        return None
    if not isinstance(model, str):
        raise Refused(Refusal.BAD_PARAMS, "model must be a string, the name of a model.")
    if not is_model_slug(model):
        raise Refused(Refusal.MODEL_UNKNOWN, f"There is no model {_shown(model)} for you.")
    return model


def _shown(name: str) -> str:
    # What a client sent goes back to it, and to nobody else; still short, and never broken Unicode.
    return ascii(name[:40])


class _Twice(ValueError):
    """An object names a field twice: which one counts would be a guess."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        raise _Twice(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
