"""What a user may ask of sampling, checked field by field. Knows no model and no request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from chatproject.contract.errors import Refusal
from chatproject.generations.errors import Refused

MAX_STOPS: Final = 16
MAX_STOP_CHARACTERS: Final = 256
MAX_SEED: Final = 2**63 - 1
MAX_TOKENS: Final = 1_000_000  # the model's context is the real limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The user's wishes; None leaves the choice to the service."""

    temperature: float | None = None  # 0 .. 2; 0 = greedy
    top_p: float | None = None  # (0, 1]
    top_k: int | None = None  # 0 = all
    max_tokens: int | None = None  # 1 ..
    seed: int | None = None  # 0 .. 2**63 - 1; drawn at accept when not given
    stop: tuple[str, ...] = ()


def parse_params(fields: Mapping[str, Any] | None) -> Params:
    """Read ``params`` of a message. Raises Refused(bad_params) that names the field and says what is allowed."""
    fields = {} if fields is None else fields
    if not isinstance(fields, Mapping):
        raise Refused(Refusal.BAD_PARAMS, "params must be an object.")
    known = {"temperature", "top_p", "top_k", "max_tokens", "seed", "stop"}
    for name in fields:
        if name not in known:
            raise Refused(Refusal.BAD_PARAMS, f"params.{str(name)[:40]} is unknown. Known: {', '.join(sorted(known))}.")
    return Params(
        temperature=_real(fields, "temperature", 0.0, 2.0),
        top_p=_real(fields, "top_p", 0.0, 1.0, excludes_least=True),
        top_k=_whole(fields, "top_k", 0, 1_000_000),
        max_tokens=_whole(fields, "max_tokens", 1, MAX_TOKENS),
        seed=_whole(fields, "seed", 0, MAX_SEED),
        stop=_stops(fields.get("stop")),
    )


def _real(
    fields: Mapping[str, Any], name: str, least: float, most: float, *, excludes_least: bool = False
) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    bounds = f"{'more than' if excludes_least else 'from'} {least:g} to {most:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(Refusal.BAD_PARAMS, f"params.{name} must be a number {bounds}.")
    in_range = least <= value <= most and not (excludes_least and value == least)
    if not in_range or not math.isfinite(value):
        raise Refused(Refusal.BAD_PARAMS, f"params.{name} must be {bounds}.")
    return float(value)


def _whole(fields: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(Refusal.BAD_PARAMS, f"params.{name} must be a whole number from {least} to {most}.")
    if not least <= value <= most:
        raise Refused(Refusal.BAD_PARAMS, f"params.{name} must be from {least} to {most}.")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise Refused(Refusal.BAD_PARAMS, "params.stop must be a string or a list of strings.")
    if len(stops) > MAX_STOPS:
        raise Refused(Refusal.BAD_PARAMS, f"params.stop may hold at most {MAX_STOPS} strings.")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise Refused(Refusal.BAD_PARAMS, f"each of params.stop must have 1 to {MAX_STOP_CHARACTERS} characters.")
        if not is_storable(stop):
            raise Refused(Refusal.BAD_PARAMS, "params.stop may not hold NUL or broken Unicode.")
    return tuple(stops)


def is_storable(text: str) -> bool:
    """Say whether every database and encoder can take ``text``: no NUL, no lone surrogate."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
