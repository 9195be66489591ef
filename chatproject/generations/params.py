"""What a user may ask of sampling, checked field by field. Knows no model and no request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from chatproject.contract.errors import Refusal
from chatproject.contract.messages import MAX_LOGIT_BIAS, MAX_STOPS, MAX_TOP_LOGPROBS
from chatproject.generations.errors import Refused

MAX_STOP_CHARACTERS: Final = 256
MAX_SEED: Final = 2**63 - 1
MAX_TOKENS: Final = 1_000_000  # the model's context is the real limit
MAX_TOKEN_ID: Final = 2**31 - 1  # the model's vocabulary is the real limit; its worker refuses what lies beyond
MAX_BIAS: Final = 100.0  # as good as always, or never


_KNOWN: Final = frozenset(
    {
        "temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "min_p", "repetition_penalty",
        "presence_penalty", "frequency_penalty", "logit_bias",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The user's wishes; None leaves the choice to the service."""

    temperature: float | None = None  # 0 .. 2; 0 = greedy
    top_p: float | None = None  # (0, 1]
    top_k: int | None = None  # 0 = all
    max_tokens: int | None = None  # 1 ..
    seed: int | None = None  # 0 .. 2**63 - 1; drawn at accept when not given
    stop: tuple[str, ...] = ()
    min_p: float | None = None  # 0 .. 1
    repetition_penalty: float | None = None  # 0.01 .. 10; 1 = none
    presence_penalty: float | None = None  # -2 .. 2
    frequency_penalty: float | None = None  # -2 .. 2
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, -100 .. 100), by token
    logprobs: int | None = None  # 0 .. 20 alternatives


def parse_params(fields: Mapping[str, Any] | None, *, has_logprobs: bool = False) -> Params:
    """Read ``params`` of a message; ``logprobs`` is known only to those who can show them.

    Raises Refused(bad_params) that names the field and says what is allowed.
    """
    fields = {} if fields is None else fields
    if not isinstance(fields, Mapping):
        raise Refused(Refusal.BAD_PARAMS, "params must be an object.")
    known = _KNOWN | {"logprobs"} if has_logprobs else _KNOWN
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
        min_p=_real(fields, "min_p", 0.0, 1.0),
        repetition_penalty=_real(fields, "repetition_penalty", 0.01, 10.0),
        presence_penalty=_real(fields, "presence_penalty", -2.0, 2.0),
        frequency_penalty=_real(fields, "frequency_penalty", -2.0, 2.0),
        logit_bias=_biases(fields.get("logit_bias")),
        logprobs=_whole(fields, "logprobs", 0, MAX_TOP_LOGPROBS),
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


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise Refused(Refusal.BAD_PARAMS, "params.logit_bias must be an object from token ids to numbers.")
    if len(value) > MAX_LOGIT_BIAS:
        raise Refused(Refusal.BAD_PARAMS, f"params.logit_bias may name at most {MAX_LOGIT_BIAS} tokens.")
    biases: dict[int, float] = {}
    for name, bias in value.items():
        is_token = isinstance(name, str) and name.isascii() and name.isdigit() and len(name) <= 10
        if not is_token or int(name) > MAX_TOKEN_ID or int(name) in biases:
            raise Refused(
                Refusal.BAD_PARAMS, f"params.logit_bias must name token ids, each once, not {str(name)[:20]!a}."
            )
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise Refused(
                Refusal.BAD_PARAMS, f"params.logit_bias must hold numbers from {-MAX_BIAS:g} to {MAX_BIAS:g}."
            )
        biases[int(name)] = float(bias)
    return tuple(sorted(biases.items()))


def is_storable(text: str) -> bool:
    """Say whether every database and encoder can take ``text``: no NUL, no lone surrogate."""
    if "\x00" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
