"""What travels beside the frames: the request, the end, control messages, and what workers say of themselves.

Each is frozen, closed and has a JSON form; `from_json` refuses what it does not know with ContractError.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from chatproject.contract.errors import ContractError
from chatproject.contract.names import Lane

Role = Literal["system", "user", "assistant"]
ROLES: Final[tuple[Role, ...]] = ("system", "user", "assistant")
VERSION: Final = 1
# Limits of one request, held at admission and again by the engine.
MAX_STOPS: Final = 16
MAX_LOGIT_BIAS: Final = 1024  # tokens
MAX_TOP_LOGPROBS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One piece of the conversation: who said what. ``text`` is data, never control tokens."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. A value of the range is checked at admission; the engine checks again.

    In this order: bias, repetition, presence and frequency change the logits; then temperature; then top_k, top_p and
    min_p cut. Logprobs are those of the model itself, before all of it.
    """

    temperature: float = 0.7  # 0 = greedy
    top_p: float = 1.0  # (0, 1]
    top_k: int = 0  # 0 = all
    max_tokens: int = 512  # >= 1
    seed: int = 0  # 64 bits; drawn at accept when the user gave none
    stop: tuple[str, ...] = ()  # at most MAX_STOPS; the answer ends before the first of them
    min_p: float = 0.0  # [0, 1]; tokens less likely than this share of the likeliest are cut; 0 = none
    repetition_penalty: float = 1.0  # > 0; divides positive logits of prompt and answer tokens, multiplies negative
    presence_penalty: float = 0.0  # taken off the logit of every answer token so far
    frequency_penalty: float = 0.0  # the same, once for each time it came
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit); at most MAX_LOGIT_BIAS
    logprobs: int | None = None  # how many alternatives to tell with each token, up to MAX_TOP_LOGPROBS; None = nothing

    @property
    def is_penalised(self) -> bool:
        """Whether the choice depends on the tokens so far."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


# Written even at their defaults: the first workers knew these alone, and still read requests that ask for no more.
_ALWAYS: Final = frozenset({"temperature", "top_p", "top_k", "max_tokens", "seed", "stop"})
_NO_WISHES: Final = dataclasses.asdict(SamplingParams())
_compact: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """All a worker needs to answer: written at accept, never changed, read again at every run."""

    generation_id: str  # uuid4, lower case
    model: str  # slug
    lane: Lane
    user_id: str  # opaque: the scope of fairness and of prefix sharing
    weight: float = 1.0  # the user's share within the lane
    turns: tuple[Turn, ...]
    params: SamplingParams
    accepted_ms: int  # database clock, milliseconds since the epoch
    expires_ms: int  # waits until then at the longest
    attempt: int = 1  # runs that died + 1
    watcher: str | None = None  # the channel that wants the first frames
    version: int = VERSION

    def to_json(self) -> str:
        """Return the request as compact JSON; wishes of sampling that nobody has are left out."""
        # By hand: `dataclasses.asdict` copies all of it, which takes longer than the rest.
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["turns"] = [{"role": turn.role, "text": turn.text} for turn in self.turns]
        wishes = {name: getattr(self.params, name) for name in _NO_WISHES}
        fields["params"] = {name: wish for name, wish in wishes.items() if name in _ALWAYS or wish != _NO_WISHES[name]}
        return _compact(fields)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a request. Raises ContractError when it is not one of this version."""
        fields = _object(text)
        try:
            fields["lane"] = Lane(fields["lane"])
            fields["turns"] = tuple(Turn(**turn) for turn in fields["turns"])
            params = fields["params"]
            params["stop"] = tuple(params.get("stop", ()))
            params["logit_bias"] = tuple((token, bias) for token, bias in params.get("logit_bias", ()))
            fields["params"] = SamplingParams(**params)
            request = cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ContractError(f"not a generation request: {error}") from error
        if request.version != VERSION:
            raise ContractError(f"a generation request of version {request.version}; this side reads {VERSION}")
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a generation took. Seconds are the engine's, shared out by tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens whose keys and values were there already
    dropped_turns: int = 0  # turns cut from the oldest because they did not fit the context
    engine_s: float = 0.0  # GPU-seconds (CPU-seconds of the engine on CPU)
    queue_ms: int = 0  # accepted to claimed, of the last run
    prefill_ms: int = 0
    decode_ms: int = 0  # of the last run, from its first token to the end
    tokens_per_s: float = 0.0  # in that time
    mean_rows: float = 0.0  # of the decode steps in that time: with how many it was batched
    kv_blocks: int = 0  # of the cache, held at the end

    def to_json(self) -> str:
        """Return the usage as compact JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a usage; unknown fields of a newer side are left out."""
        return cls(**_known(cls, _object(text)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who serves a generation: slot (stays over restarts), boot (one process), run (only grows)."""

    slot: str
    boot: str
    run: int

    def __str__(self) -> str:
        return f"{self.slot}:{self.boot}:{self.run}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``<slot>:<boot>:<run>``."""
        try:
            slot, boot, run = text.rsplit(":", 2)
            return cls(slot=slot, boot=boot, run=int(run))
        except ValueError as error:
            raise ContractError(f"not a lease: {text!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A word on a worker's control channel."""

    kind: Literal["cancel", "watch", "drain"]
    generation_id: str = ""
    channel: str = ""  # watch: who wants the frames

    def to_json(self) -> str:
        """Return the word as compact JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a word. Raises ContractError when it is none."""
        try:
            return cls(**_object(text))
        except TypeError as error:
            raise ContractError(f"not a control message: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """What the workers of a model say of it; kept for a day so that estimates survive them."""

    model: str
    context_tokens: int
    vocabulary_sha256: str
    turn_tokens: int  # template tokens around one turn, the most of any role
    slots: int  # sequences one worker runs at once
    seconds_per_token: float  # engine seconds, shared out by tokens, moving average
    state: Literal["loading", "ready", "failed"]
    detail: str = ""
    seconds_per_generation: float = 0.0  # claimed to end, moving average; 0 = not known yet

    def to_json(self) -> str:
        """Return the status as compact JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a status; unknown fields of a newer side are left out. Raises ContractError when it is none."""
        try:
            return cls(**_known(cls, _object(text)))
        except TypeError as error:
            raise ContractError(f"not a model status: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """What one worker slot holds right now."""

    slot: str
    boot: str
    model: str
    state: Literal["loading", "ready", "draining"]
    slots: int
    running: int
    steps: int  # engine steps since boot: grows while the engine lives
    rows_per_step: float  # mean rows of a decode step since boot
    decode_steps: int = 0  # since boot
    tokens: int = 0  # completion tokens since boot
    prompt_tokens: int = 0  # since boot
    cached_tokens: int = 0  # of these, found in the cache
    waiting: int = 0  # claimed, and not in a step yet
    preemptions: int = 0  # since boot
    kv_blocks: int = 0  # of the cache
    kv_used: float = 0.0  # the part of them that running sequences hold
    # Since boot, each timed by itself; load, busy and idle together are the wall time.
    up_s: float = 0.0
    load_s: float = 0.0  # loading the model
    busy_s: float = 0.0  # in steps; shared out to the generations by tokens
    idle_s: float = 0.0  # waiting for something to do

    def to_json(self) -> str:
        """Return the status as compact JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a status; unknown fields of a newer side are left out. Raises ContractError when it is none."""
        try:
            return cls(**_known(cls, _object(text)))
        except TypeError as error:
            raise ContractError(f"not a worker status: {error}") from error


def _known(kind: type[Any], fields: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in fields.items() if name in names}


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ContractError("not JSON") from error
    if not isinstance(value, dict):
        raise ContractError("not a JSON object")
    return value
